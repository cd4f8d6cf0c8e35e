"""The command `inspect`, and what a summary says."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_graph.definitions import torchair_sources
from moe_graph.dumps import Descriptor, Edge, Graph, Node, read, summarise, torchair_py
from moe_graph.dumps.inspect import main
from moe_graph.dumps.summary import plain

DUMPS = Path(__file__).parent.parent / "dumps"
TXT = str(DUMPS / "dynamo_original_graph_1.txt")


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_summary_of_the_example():
    found = summarise(read(TXT)[0])
    assert [(port.name, str(port.tensor)) for port in found.inputs] == [
        ("arg0_1", "float32[16, 4]"),
        ("arg1_1", "int64[]"),
        ("arg2_1", "float32[?, 4]"),
        ("arg3_1", "int32[2, 3]"),
        ("arg4_1", "float32[?]"),
    ]
    assert [(port.name, str(port.tensor)) for port in found.outputs] == [
        ("Add:0", "float32[?, 2, 8]"),
        ("MoeReRouting:1", "float32[?]"),
        ("Cumsum:0", "int64[3]"),
    ]
    assert list(found.types.items())[:3] == [("Data", 5), ("Cast", 4), ("Const", 4)]
    assert found.placements == {"CPU": ("arg1_1",), "NPU": ("arg0_1", "arg2_1", "arg3_1", "arg4_1")}
    (node,) = found.moe
    assert [(port.name, str(port.tensor)) for port in node.inputs] == [
        ("tokens", "float16[?, 16]"),
        ("expert_token_num_per_rank", "int32[2, 3]"),
        ("per_token_scales", "float32[?]"),
    ]
    assert node.attributes == {"expert_token_num_type": 1, "idx_type": 0}
    assert found.dynamic["input arg2_1"] == found.dynamic["MoeReRouting output 0"] == (0,)
    assert "input arg0_1" not in found.dynamic
    # The model converts twice; the product with a number and the running sum are lowered with a Cast of their own.
    assert [(c.before, c.after, c.origin, c.changes_nothing) for c in found.casts] == [
        ("float32", "float16", "model", False),
        ("float16", "float16", "lowering", True),
        ("float16", "float32", "model", False),
        ("int32", "int64", "lowering", False),
    ]
    assert [(t.permutation, t.origin) for t in found.transposes] == [((1, 0), "view")]


def test_a_transpose_the_lowering_inserted_is_told_from_the_models():
    def transpose(name, fx):
        return Node(name, "Transpose", (Edge("x"), Edge("perm")), (), (Descriptor("float16", None),), {}, fx=fx)

    x = Node("x", "Data", outputs=(Descriptor("float16", (2, 3)),), attributes={"index": 0})
    perm = Node("perm", "Const", outputs=(Descriptor("int64", (2,)),), attributes={"value": [1, 0]})
    fx = ["permute: aten.permute.default", "sort: aten.sort.default", "a view read by mm: aten.mm.default", ""]
    nodes = [transpose(f"t{at}", text) for at, text in enumerate(fx)]
    origins = [t.origin for t in summarise(Graph("", (x, perm, *nodes))).transposes]
    assert origins == ["model", "lowering", "view", "unknown"]


def test_inputs_stand_in_the_order_of_their_numbers():
    nodes = [Node(f"a{i}", "Data", outputs=(Descriptor("int8", ()),), attributes={"index": i}) for i in (2, 0, 1)]
    unnumbered = Node("b", "RefData")
    assert [port.name for port in summarise(Graph("", (unnumbered, *nodes))).inputs] == ["a0", "a1", "a2", "b"]


def test_tables(capsys):
    code, out, err = run(capsys, TXT)
    assert (code, err) == (0, "")
    for text in (
        "graph_1 (txt, original: as lowered), 21 nodes",
        "arg2_1  float32[?, 4]   NPU",
        "on CPU (the host): arg1_1",
        "MoeReRouting MoeReRouting",
        "expert_token_num_type",
        "casts: 4 (2 the model's own, 2 inserted by the lowering)",
        "transposes: 1 (1 the model's view, put off)",
        "a view read by matmul: aten.matmul.default",
    ):
        assert text in out, out


def test_a_folder_tells_source_lines(capsys):
    assert run(capsys, DUMPS)[1].count("model.py:18 in forward") == 6


def test_without_torchairs_sources_a_py_dump_says_less_and_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(torchair_sources, "sources", lambda: ())
    monkeypatch.setattr(torchair_py, "signature", lambda kind: None)
    code, out, err = run(capsys, DUMPS / "dynamo_original_graph_1.py", "--json")
    assert code == 0 and "pip install torch_npu" in err
    (node,) = json.loads(out)["graphs"][0]["moe"]
    assert [port["name"] for port in node["inputs"]] == ["0", "1", "2"]
    assert node["attributes"] == {"expert_token_num_type": 1, "idx_type": 0}
    assert node["outputs"][0] == {"dtype": "float16", "shape": [-1, 16]}
    assert run(capsys, TXT)[2] == ""


def test_json(capsys):
    code, out, _ = run(capsys, TXT, "--json")
    found = json.loads(out)
    assert code == 0 and list(found) == ["schema", "graphs"] and found["schema"] == "moe_graph inspect 1"
    (graph,) = found["graphs"]
    assert list(graph) == [
        *("name", "kind", "stage", "inputs", "outputs", "types", "moe", "placements", "dynamic", "casts", "transposes")
    ]
    assert graph["inputs"][2] == {"name": "arg2_1", "tensor": {"dtype": "float32", "shape": [-1, 4]}}
    assert graph == json.loads(json.dumps(summarise(read(TXT)[0]).as_dict()))


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["--type", "Moe*"], ["MoeReRouting"]),
        (["--name", "Cast_[12]"], ["Cast_1", "Cast_2"]),
        (["--type", "Cast", "--source", "aten._to_copy"], ["Cast", "Cast_2"]),
        (["--source", "nowhere"], []),
        (["--type", "moe*"], []),
    ],
)
def test_filters(capsys, filters, names):
    (graph,) = json.loads(run(capsys, TXT, "--json", *filters)[1])["graphs"]
    assert [node["name"] for node in graph["nodes"]] == names
    out = run(capsys, TXT, *filters)[1]
    assert f"{len(names)} of 21 nodes" in out and all(name in out for name in names)


def test_a_source_line_filters_nodes_of_a_py_dump(capsys):
    path = DUMPS / "dynamo_original_graph_1.py"
    (graph,) = json.loads(run(capsys, path, "--json", "--source", "model.py:25")[1])["graphs"]
    assert [node["name"] for node in graph["nodes"]] == ["Reshape", "Cast_2"]


def test_all_nodes(capsys):
    (graph,) = json.loads(run(capsys, TXT, "--json", "--nodes")[1])["graphs"]
    assert len(graph["nodes"]) == 21
    assert graph["nodes"][5]["inputs"] == ["arg0_1:0", "Const:0"] or graph["nodes"][6]["inputs"] == [
        "arg0_1:0",
        "Const:0",
    ]
    assert "21 of 21 nodes" in run(capsys, TXT, "--nodes")[1]


def test_control_characters_and_markup_of_a_dump_are_shown_not_obeyed(capsys, tmp_path):
    path = tmp_path / "dump.txt"
    path.write_text('op { name: "[bold]a[/bold]\\033[31m:smile:" type: "Moe" }\nop { name: "end" type: "NetOutput" }')
    for arguments in ([], ["--nodes"]):
        out = run(capsys, path, *arguments)[1]
        assert "\x1b" not in out and r"[bold]a[/bold]\x1b[31m:smile:" in out


def test_a_picture_is_of_one_graph(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run(capsys, TXT, TXT, "--svg", tmp_path / "x.svg")
    assert stopped.value.code == 2 and "a picture is of one graph, got 2" in capsys.readouterr().err


def test_a_picture_overwrites_no_dump(tmp_path, capsys):
    dump = tmp_path / "dynamo_original_graph_1.txt"
    dump.write_bytes(Path(TXT).read_bytes())
    (tmp_path / "link.html").symlink_to(dump)
    for read_from, out in ((dump, dump), (tmp_path, dump), (dump, tmp_path / "link.html")):
        with pytest.raises(SystemExit):
            run(capsys, read_from, "--html", out)
        assert f"argument --html: {out} is {dump} itself" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(capsys, dump, "--html", tmp_path / "x", "--svg", tmp_path / "x")
    assert dump.read_bytes() == Path(TXT).read_bytes() and not (tmp_path / "x").exists()


def test_where_no_file_can_be_is_said_before_the_dump_is_read(tmp_path, capsys):
    for path, problem in ((tmp_path, "is a folder"), (tmp_path / "none" / "x.html", "there is no folder")):
        with pytest.raises(SystemExit):
            run(capsys, tmp_path / "missing.txt", "--html", path)
        assert problem in capsys.readouterr().err.splitlines()[-1]


def test_a_picture_that_cannot_be_written_is_a_failure(capsys, tmp_path):
    code, _, err = run(capsys, TXT, "--dot", "/dev/full")
    assert code == 1 and err.startswith("--dot /dev/full: ")
    assert run(capsys, TXT, "--dot", tmp_path / "x.dot")[0] == 0
    assert "MoeReRouting" in (tmp_path / "x.dot").read_text()


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)


@settings(max_examples=50, deadline=None)
@given(st.recursive(VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=6))
def test_any_attribute_is_strict_json(value):
    json.dumps(plain(value), allow_nan=False)


def test_a_graph_and_its_summary_are_a_line_each_and_a_picture_in_a_notebook():
    (graph,) = read(DUMPS / "dynamo_optimized_graph_1.txt")
    assert repr(graph).startswith("<Graph graph_1 (optimized): 20 nodes: ") and len(repr(graph)) < 300
    summary = summarise(graph)
    assert repr(summary).startswith("<Summary of graph_1: 20 nodes: ") and len(repr(summary)) < 400
    assert "data:image/svg+xml;base64," in graph._repr_html_()
    assert summary._repr_html_().count("<tr>") == len(summary.types) + 1
