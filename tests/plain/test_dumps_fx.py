"""FX graphs as code, which the mode that captures dumps: read, summarised, compared, drawn."""

from __future__ import annotations

import dataclasses
import operator

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from moe_graph.dumps import DumpError, Edge, diff, dot, from_fx, html, read, summarise, svg
from moe_graph.dumps.diff_command import main as diff_main
from moe_graph.dumps.inspect import main as inspect_main


def _cat(x, y):
    a, b = torch.split(torch.cat([x, y * 2]), 4)
    return a.t() @ b, torch.where(a > 0, a, -a)


def _several(x, y):
    values, indices = torch.topk(x, 2)
    return torch.index_put(y, [indices[0].clamp(0, 1)], values[0].sum()), values.half(), None


def _sizes(x, y):
    return x.view(-1, y.shape[0] * 2), y.new_zeros(x.shape[0] + 3, x.shape[1] // 2)


def _written(x, y):
    z = x + 1
    z.mul_(y)
    z.add_(x)
    return torch.relu(z)


PROGRAMS = {"cat": _cat, "several": _several, "sizes": _sizes, "written": _written}


def _traced(name, mode):
    return make_fx(PROGRAMS[name], tracing_mode=mode)(torch.rand(4, 4), torch.rand(4, 4))


def _expected_edges(module):
    """Walked in FX's own graph: name -> what it reads, picked outputs folded, writes in place handed on."""
    stands: dict[torch.fx.Node, Edge] = {}
    edges = {}
    for node in module.graph.nodes:
        found = [stands[leaf] for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, torch.fx.Node)]
        several = isinstance(node.meta.get("val"), (tuple, list))
        if node.target is operator.getitem and isinstance(node.args[0].meta["val"], (tuple, list)):
            stands[node] = Edge(stands[node.args[0]].node, node.args[1])
            continue
        stands[node] = Edge(node.name)
        edges["NetOutput" if node.op == "output" else node.name] = found
        name = str(node.target).split(".")[-2] if isinstance(node.target, torch._ops.OpOverload) else ""
        if name.endswith("_") and not name.endswith("__"):
            assert not several
            stands[node.args[0]] = Edge(node.name)
    return edges


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_edge_and_shape_is_that_of_the_fx_graph(name, mode):
    module = _traced(name, mode)
    graph = from_fx(module)
    assert {node.name: list(node.inputs) for node in graph.nodes} == _expected_edges(module)
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and node.name in graph.by_name:
            described = graph.by_name[node.name].outputs[0]
            assert described.dtype == str(value.dtype).removeprefix("torch.")
            assert described.shape == tuple(int(str(s)) if str(s).isdigit() else -1 for s in value.shape)
            if node.op == "call_function":
                assert graph.by_name[node.name].type == str(node.target)


def test_sizes_of_a_dynamic_graph_are_inputs_on_the_host():
    graph = from_fx(_traced("sizes", "symbolic"))
    sizes = [node for node in graph.nodes if node.type == "aten.sym_size.int"]
    assert sizes and all(node.outputs[0].device == "CPU" and node.outputs[0].shape == () for node in sizes)
    assert graph.types["operator.mul"] == 1 and graph.types["operator.floordiv"] == 1
    view = next(node for node in graph.nodes if node.type == "aten.view.default")
    assert view.attributes["1"] == [-1, "input 1"] and graph.by_name[view.inputs[1].node].type == "operator.mul"


CODE = """class <lambda>(torch.nn.Module):
    def forward(self, arg0_1: "Sym(s7)", arg1_1: "bf16[s7, 8][8, 1]npu:0", arg2_1: "i32[2, 3][3, 1]npu:0"):
        # File: model.py:8 in forward, code: routed, _, order, per_expert = npu_moe_re_routing(x, counts)
        npu_moe_re_routing = torch.ops.npu.npu_moe_re_routing.default(arg1_1, arg2_1, expert_token_num_type = 1);  arg1_1 = None
        getitem: "bf16[s7, 8][8, 1]npu:0" = npu_moe_re_routing[0]
        getitem_3: "i32[3][1]npu:0" = npu_moe_re_routing[3];  npu_moe_re_routing = None

        # File: model.py:9 in forward, code: return routed.float() * 2, per_expert
        _to_copy: "f32[s7, 8][8, 1]npu:0" = torch.ops.aten._to_copy.default(getitem, dtype = torch.float32);  getitem = None
        mul: "f32[s7, 8][8, 1]npu:0" = torch.ops.aten.mul.Tensor(_to_copy, -2.5);  _to_copy = None

        # No stacktrace found for following nodes
        moved: "f32[s7, 8][8, 1]npu:0" = torch.ops.aten._to_copy.default(mul, device = device(type='npu', index=1))
        return (mul, getitem_3)
"""
OPTIMIZED = (
    CODE.replace("aten.mul.Tensor", "aten.mul_.Tensor")
    .replace("return (mul,", "return (_to_copy,")
    .replace("_to_copy = None", "")
)


def test_a_dump_of_the_mode_that_captures_is_summarised(tmp_path):
    path = tmp_path / "dynamo_original_graph_1_rank_0_pid_7_ts_1.py"
    path.write_text(CODE)
    (graph,) = read(path)
    assert (graph.name, graph.kind, graph.stage) == ("graph_1", "fx", "original")
    found = summarise(graph)
    assert [port.name for port in found.inputs] == ["arg0_1", "arg1_1", "arg2_1"]
    (moe,) = found.moe
    assert moe.type == "npu.npu_moe_re_routing.default" and moe.attributes == {"expert_token_num_type": 1}
    assert moe.source == ("model.py:8 in forward",)
    assert [str(output) for output in moe.outputs] == ["bfloat16[?, 8]", "[?]", "[?]", "int32[3]"]
    (cast,) = found.casts
    assert (cast.before, cast.after, cast.origin) == ("bfloat16", "float32", "model")
    assert graph.by_name["mul"].attributes == {"1": -2.5}
    assert graph.by_name["moved"].source == () and graph.by_name["moved"].attributes == {
        "device": "device(type='npu', index=1)"
    }
    assert found.placements["CPU"] == ("arg0_1",)


def test_the_commands_take_it(tmp_path, capsys):
    for at, (stage, code) in enumerate({"original": CODE, "optimized": OPTIMIZED}.items()):
        (tmp_path / f"dynamo_{stage}_graph_1_rank_0_pid_7_ts_{at}.py").write_text(code)
    assert inspect_main([str(tmp_path)]) == 0
    assert "npu.npu_moe_re_routing.default" in capsys.readouterr().out
    assert diff_main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "~ aten.mul.Tensor mul",
        "    type: aten.mul.Tensor -> aten.mul_.Tensor",
        "0 removed, 0 added, 1 changed, 7 the same (8 -> 8 nodes)",
    ]
    picture = tmp_path / "graph.html"
    assert inspect_main([str(tmp_path), "--html", str(picture)]) == 0
    assert "npu.npu_moe_re_routing.default" in picture.read_text()


def test_branches_are_graphs_of_their_own(tmp_path):
    path = tmp_path / "branches.txt"
    path.write_text(
        "class GraphModule(torch.nn.Module):\n"
        '    def forward(self, p: "b8[]", x: "f32[2]"):\n'
        "        then = self.then\n"
        "        other = self.other\n"
        '        constant: "f32[2]" = self._tensor_constant0\n'
        "        cond = torch.ops.higher_order.cond(p, then, other, (x, constant));  then = other = None\n"
        '        getitem: "f32[2]" = cond[0];  cond = None\n'
        "        return (getitem,)\n\n"
        "    class then(torch.nn.Module):\n"
        '        def forward(self, x: "f32[2]", y: "f32[2]"):\n'
        '            add: "f32[2]" = torch.ops.aten.add.Tensor(x, y)\n'
        "            return (add,)\n\n"
        "    class other(torch.nn.Module):\n"
        '        def forward(self, x: "f32[2]", y: "f32[2]"):\n'
        "            return (x,)\n"
    )
    outer, then, other = read(path)
    assert [graph.name for graph in (outer, then, other)] == ["branches", "then", "other"]
    cond = outer.by_name["cond"]
    assert cond.inputs == (Edge("p"), Edge("x"), Edge("constant"))
    assert cond.attributes == {"1": "then", "2": "other"}
    assert outer.by_name["constant"].type == "Const" and then.types["aten.add.Tensor"] == 1
    assert other.by_name["NetOutput"].inputs == (Edge("x"),)


def test_pictures_and_the_same_graph():
    graph = from_fx(_traced("several", "fake"))
    assert not diff.diff(graph, from_fx(_traced("several", "fake")))
    changed = diff.diff(graph, dataclasses.replace(from_fx(_traced("cat", "fake")), name=graph.name))
    assert {node.type for node in changed.removed} >= {"aten.topk.default"}
    assert "aten.topk.default" in dot.dot(graph) and "aten.topk.default" in html.html(graph)
    assert svg.svg(graph).startswith("<svg") and "<img" in graph._repr_html_()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (CODE[:400], "not Python"),
        (CODE.replace("        return (mul, getitem_3)\n", ""), "no return: is the dump cut off"),
        (CODE.replace("return (mul,", "assert (mul,"), "line 14: .* is not a node of an FX graph"),
        (CODE + "        x = torch.ops.aten.mm.default(mul)\n", "line 15: the graph goes on after its return"),
        (CODE.replace("mul: ", "arg2_1: "), "two nodes are named 'arg2_1'"),
        (CODE.replace("npu_moe_re_routing[3]", "npu_moe_re_routing[70000]"), "output 70000 of npu_moe_re_routing"),
        (CODE.replace("(_to_copy, -2.5)", "(_to_copy, " + "(" * 300 + ")" * 300 + ")"), "nested too deep|not Python"),
    ],
)
def test_what_is_not_the_code_of_a_graph_is_an_error_that_names_the_line(tmp_path, code, message):
    path = tmp_path / "dump.py"
    path.write_text(code)
    with pytest.raises(DumpError, match=message):
        read(path)
