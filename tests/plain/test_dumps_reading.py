"""Dumps are read: every kind of the same graph says the same."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format

from dumps import onnx_text
from moe_graph.dumps import Descriptor, Edge, from_definition, read, reading_dtypes, summarise
from moe_graph.dumps.model import CONTROL
from moe_graph.dumps.reading import read_file, share_sources
from moe_graph.engine import dtypes, proto

DUMPS = Path(__file__).parent.parent / "dumps"
KINDS = ("txt", "pbtxt", "py")


def dump(kind, stage="original"):
    (graph,) = read(DUMPS / f"dynamo_{stage}_graph_1.{kind}")
    return graph


def definition(path):
    graph = proto.messages().GraphDef()
    text_format.Parse(path.read_text(), graph)
    return graph


def test_what_a_dump_of_the_example_holds():
    graph = dump("txt")
    assert (graph.name, graph.kind, graph.stage, len(graph.nodes)) == ("graph_1", "txt", "original", 21)
    node = graph.by_name["MoeReRouting"]
    assert node.inputs == (Edge("Cast_1"), Edge("arg3_1"), Edge("arg4_1"))
    assert node.input_names == ("tokens", "expert_token_num_per_rank", "per_token_scales")
    assert node.attributes == {"expert_token_num_type": 1, "idx_type": 0}
    # The model views the first output as [-1, 2, 8]; what the operator gives has the shape of its tokens.
    assert [str(tensor) for tensor in node.outputs] == ["float16[?, 16]", "float32[?]", "int32[?]", "int32[3]"]
    assert node.fx == "npu_moe_re_routing: npu.npu_moe_re_routing.default"
    assert graph.by_name["MatMul"].inputs == (Edge("arg2_1"), Edge("Transpose"), None)
    assert graph.by_name["arg1_1"].outputs == (Descriptor("int64", (), "ND", "CPU"),)
    assert [graph.by_name[edge.node].attributes.get("value") for edge in graph.by_name["Reshape"].inputs] == [
        None,
        [-1, 2, 8],
    ]


@pytest.mark.parametrize("kind", ["pbtxt", "py"])
def test_every_kind_gives_the_same_summary(kind):
    assert summarise(dump(kind)).comparable() == summarise(dump("txt")).comparable()


def test_the_optimized_graph_is_the_same_in_txt_and_pbtxt():
    assert dump("txt", "optimized").nodes == dump("pbtxt", "optimized").nodes
    assert summarise(dump("txt", "optimized")).comparable() == summarise(dump("pbtxt", "optimized")).comparable()
    assert len(dump("txt", "optimized").nodes) == 20


def test_a_py_dump_is_of_the_graph_as_lowered_whatever_its_name():
    assert dump("py", "optimized").stage == dump("py").stage == "original"
    assert dump("py", "optimized").nodes == dump("py").nodes


@pytest.mark.parametrize("stage", ["original", "optimized"])
def test_a_definition_in_memory_reads_like_its_text(stage):
    path = DUMPS / f"dynamo_{stage}_graph_1.txt"
    assert from_definition(definition(path)).nodes == dump("txt", stage).nodes


def test_a_dump_in_the_form_ge_writes_gives_the_same_summary(tmp_path):
    path = tmp_path / "ge_onnx_00000001_graph_1_PreRunBegin.pbtxt"
    path.write_text(onnx_text.encode(dump("txt")))
    (graph,) = read(path)
    assert (graph.kind, graph.stage) == ("onnx", "")
    expected, found = summarise(dump("txt")).comparable(), summarise(graph).comparable()
    for part in ("inputs", "outputs", "types", "moe", "placements", "dynamic", "casts"):
        assert found[part] == expected[part], part
    assert [node.inputs for node in graph.inputs] == [()] * 5  # GE writes one that is not fed
    assert list(graph.by_name["MatMul"].inputs) == [Edge("arg2_1"), Edge("Transpose"), None]


def test_ge_holds_graphs_that_nodes_call_beside_the_first(tmp_path):
    path = tmp_path / "ge_onnx_1.pbtxt"
    path.write_text(
        'graph { name: "outer" node { name: "a" op_type: "ge:Data" attribute { name: "index" type: INT } }\n'
        'node { name: "inner" op_type: "subgraph" attribute { name: "graph" type: GRAPH g { name: "inner"\n'
        '  node { name: "b" op_type: "ge:Relu" output: "b:0" } node { name: "c" op_type: "ge:Relu" input: "b:0" input: "b:-1" } } } } }'
    )
    outer, inner = read(path)
    assert (outer.name, inner.name) == ("outer", "inner")
    assert outer.by_name["a"].attributes == {"index": 0}
    assert inner.by_name["c"].inputs == (Edge("b"), Edge("b", CONTROL))


def test_a_model_definition_as_ge_writes_it_is_read_too(tmp_path):
    path = tmp_path / "ge_proto_00000001_graph_1_Build.txt"
    path.write_text(f'name: "model" graph {{ {(DUMPS / "dynamo_original_graph_1.txt").read_text()} }}')
    (graph,) = read(path)
    assert graph.nodes == dump("txt").nodes


def test_a_folder_gives_every_dump_in_it_and_nothing_else():
    graphs = read(DUMPS)  # which holds Python files that are no dumps
    assert sorted((graph.kind, graph.stage) for graph in graphs) == [
        ("pbtxt", "optimized"),
        ("pbtxt", "original"),
        ("py", "original"),
        ("py", "original"),
        ("txt", "optimized"),
        ("txt", "original"),
    ]


def test_source_lines_come_from_a_py_dump_of_the_same_graph():
    by_kind = {graph.kind: graph for graph in read(DUMPS) if graph.stage == "original"}
    assert by_kind["py"].by_name["MoeReRouting"].source == ("model.py:18 in forward",)
    assert by_kind["txt"].by_name["MoeReRouting"].source == ("model.py:18 in forward",)
    assert read(DUMPS / "dynamo_original_graph_1.txt")[0].by_name["MoeReRouting"].source == ()


def test_source_lines_are_not_taken_from_another_graph(tmp_path):
    text = (DUMPS / "dynamo_original_graph_1.py").read_text().replace("ge.Cumsum(", "ge.Cumprod(")
    (tmp_path / "dynamo_original_graph_1.py").write_text(text)
    (tmp_path / "dynamo_original_graph_2.py").write_text(text.replace("ge.Cumprod(", "ge.Cumsum("))
    for number in (1, 2):  # of graph_1 with another operator; of another name
        graphs = share_sources([*read_file(tmp_path / f"dynamo_original_graph_{number}.py"), dump("txt")])
        assert graphs[0].by_name["MoeReRouting"].source and not graphs[1].by_name["MoeReRouting"].source


def test_a_line_named_once_only_is_not_claimed_for_later_nodes():
    sources = {node.name: node.source for node in dump("py").nodes}
    assert sources["Cast"] == ("model.py:17 in forward",)
    assert sources["Cast_1"] == ("model.py:17 in forward (or an earlier line)",)


def test_types_the_optimizer_makes_up_are_unknown(tmp_path):
    """torchair's optimizer writes DT_FLOAT where a descriptor has no type: the Muls of float16 in the example among them."""
    op = next(op for op in definition(DUMPS / "dynamo_optimized_graph_1.txt").op if op.type == "Muls")
    assert op.output_desc[0].dtype == proto.messages().DT_FLOAT
    assert dump("txt", "optimized").by_name["Muls"].outputs[0].dtype == "float16"  # as its input


def test_control_edges_are_read_from_every_kind(tmp_path):
    txt = (
        (DUMPS / "dynamo_original_graph_1.txt")
        .read_text()
        .replace('  input: "Add:0"\n', '  input: "Muls:-1"\n  input: "Add:0"\n')
    )
    pbtxt = (DUMPS / "dynamo_original_graph_1.pbtxt").read_text()
    pbtxt = pbtxt.replace('    input: "Add:0"\n', '    input: "^Muls"\n    input: "Add:0"\n')
    py = (DUMPS / "dynamo_original_graph_1.py").read_text().replace("dependencies=[]", "dependencies=[Muls_0]")
    for kind, text in (("txt", txt), ("pbtxt", pbtxt), ("py", py)):
        path = tmp_path / f"dump.{kind}"
        path.write_text(text)
        (graph,) = read(path)
        assert graph.by_name["NetOutput"].inputs[-1] == Edge("Muls", CONTROL), kind
        assert len(graph.by_name["NetOutput"].inputs) == 4


def test_types_are_those_of_the_engine():
    assert [(t.name, t.number, t.bits) for t in reading_dtypes.TYPES] == [(t.name, t.ge, t.bits) for t in dtypes.TYPES]
    for mine, engine in zip(reading_dtypes.TYPES, dtypes.TYPES):
        assert mine.torch in (None, engine.torch), mine


def test_reading_loads_neither_torch_npu_nor_protobuf():
    script = (
        "import sys, moe_graph.dumps as dumps\n"
        f"for kind in {KINDS}: dumps.read({str(DUMPS)!r} + '/dynamo_original_graph_1.' + kind)\n"
        "print([name for name in ('torch_npu', 'torchair', 'google.protobuf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
