"""diff: names and order are no difference, every edit is reported, and nothing else."""

import json
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumps import generated, onnx_text
from moe_graph.dumps import Descriptor, Edge, Graph, Node, read
from moe_graph.dumps.diff import diff
from moe_graph.dumps.diff_command import main

DUMPS = Path(__file__).parent.parent / "dumps"
SEEDS = st.integers(0, 2**32)


def dump(name):
    return str(DUMPS / f"dynamo_{name}")


def reported(found):
    """What a difference says, in short."""
    return {
        "removed": [node.name for node in found.removed],
        "added": [node.name for node in found.added],
        "changed": {node.before.name: [(c.what, c.before, c.after) for c in node.changes] for node in found.changed},
    }


def only(**expected):
    return {"removed": [], "added": [], "changed": {}, **expected}


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 60), st.booleans())
def test_other_names_and_another_order_are_the_same_graph(seed, size, told_apart):
    before = generated.graph(seed, size, told_apart)
    after, names = generated.disguised(before, seed + 1)
    found = diff(before, after)
    assert not found, reported(found)
    assert sorted(found.same_as.values()) == sorted(names.values())
    if told_apart:
        operators = {node.name for node in generated.operators(before)}
        assert {name: other for name, other in found.same_as.items() if name in operators} == {
            name: other for name, other in names.items() if name in operators
        }


@settings(max_examples=30, deadline=None)
@given(
    SEEDS, st.integers(2, 40), st.sampled_from(["attribute", "new attribute", "no attribute", "dtype", "shape", "type"])
)
def test_an_edit_of_one_node_is_that_edit(seed, size, what):
    before = generated.graph(seed, size)
    pick = random.Random(seed)
    node = pick.choice(generated.operators(before))
    first = node.outputs[0]
    if what == "attribute":
        fields, change = {"attributes": {"number": -1}}, ("attribute number", node.attributes["number"], -1)
    elif what == "new attribute":
        fields, change = {"attributes": {**node.attributes, "new": [1.5]}}, ("attribute new", None, [1.5])
    elif what == "no attribute":
        fields, change = {"attributes": {}}, ("attribute number", node.attributes["number"], None)
    elif what == "dtype":
        fields = {"outputs": (replace(first, dtype="bfloat16"), *node.outputs[1:])}
        change = ("output 0 dtype", first.dtype, "bfloat16")
    elif what == "shape":
        fields, change = (
            {"outputs": (replace(first, shape=(7,)), *node.outputs[1:])},
            ("output 0 shape", first.shape, (7,)),
        )
    else:
        fields, change = {"type": "Gelu"}, ("type", node.type, "Gelu")
    after, _ = generated.disguised(generated.changed(before, node, **fields), seed + 1)
    assert reported(diff(before, after)) == only(changed={node.name: [change]})


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 40), st.booleans())
def test_a_node_put_into_an_edge_is_one_node_and_one_edge(seed, size, backwards):
    before = generated.graph(seed, size)
    pick = random.Random(seed)
    reader = pick.choice(
        [node for node in before.nodes if any(e is not None and not e.is_control for e in node.inputs)]
    )
    slot = pick.choice([at for at, edge in enumerate(reader.inputs) if edge is not None and not edge.is_control])
    edge = reader.inputs[slot]
    new = Node("new", "Identity", (edge,), ("x",), (Descriptor("float16", (1,)),))
    after = generated.changed(before, reader, inputs=(*reader.inputs[:slot], Edge("new"), *reader.inputs[slot + 1 :]))
    at = [node.name for node in after.nodes].index(reader.name)
    after = replace(after, nodes=(*after.nodes[:at], new, *after.nodes[at:]))
    after, names = generated.disguised(after, seed + 1)
    name = f"input x{slot}" if slot < len(reader.input_names) else f"input {slot}"
    old_edge, new_edge = f"{edge.node}:{edge.output}", f"{names['new']}:0"
    if backwards:
        found, expected = diff(after, before), only(removed=[names["new"]])
        expected["changed"] = {names[reader.name]: [(name, new_edge, old_edge)]}
    else:
        found, expected = diff(before, after), only(added=[names["new"]])
        expected["changed"] = {reader.name: [(name, old_edge, new_edge)]}
    assert reported(found) == expected


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(3, 40))
def test_an_edge_led_elsewhere_is_that_edge(seed, size):
    before = generated.graph(seed, size)
    pick = random.Random(seed)
    reader = pick.choice(generated.operators(before)[1:])
    slot = pick.choice([at for at, edge in enumerate(reader.inputs) if edge is not None and not edge.is_control])
    earlier = before.nodes[: [node.name for node in before.nodes].index(reader.name)]
    others = [node for node in earlier if node.type != "Const" and node.name != reader.inputs[slot].node]
    if not others:
        return
    other = pick.choice(others)
    inputs = (*reader.inputs[:slot], Edge(other.name), *reader.inputs[slot + 1 :])
    after, names = generated.disguised(generated.changed(before, reader, inputs=inputs), seed + 1)
    edge = reader.inputs[slot]
    change = (f"input x{slot}", f"{edge.node}:{edge.output}", f"{names[other.name]}:0")
    assert reported(diff(before, after)) == only(changed={reader.name: [change]})


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 40))
def test_where_nodes_look_alike_an_edit_is_still_one_change(seed, size):
    before = generated.graph(seed, size, told_apart=False)
    node = random.Random(seed).choice(generated.operators(before))
    after, _ = generated.disguised(generated.changed(before, node, attributes={"axis": 7}), seed + 1)
    found = diff(before, after)
    assert (len(found.removed), len(found.added)) == (0, 0)
    assert [[c.what for c in changed.changes] for changed in found.changed] == [["attribute axis"]]


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 40))
def test_an_order_without_data_is_reported(seed, size):
    before = generated.graph(seed, size)
    pick = random.Random(seed)
    last = before.nodes[-1]
    waited = pick.choice(generated.operators(before))
    after, names = generated.disguised(
        generated.changed(before, last, inputs=(*last.inputs, Edge(waited.name, -1))), seed
    )
    assert reported(diff(before, after)) == only(changed={last.name: [("order after", [], [names[waited.name]])]})


def test_what_only_one_of_them_says_is_no_difference():
    node = Node("a", "Relu", outputs=(Descriptor("float16", (1, 2), "ND"),))
    for silent in (Descriptor("", None), Descriptor("float16", None), Descriptor("", (1, 2), "", "NPU")):
        assert not diff(Graph("", (node,)), Graph("", (replace(node, outputs=(silent,)),)))
    other = replace(node, outputs=(Descriptor("float16", (1, 2), "FRACTAL_NZ"),))
    assert reported(diff(Graph("", (node,)), Graph("", (other,))))["changed"] == {
        "a": [("output 0 format", "ND", "FRACTAL_NZ")]
    }


def test_a_number_is_not_a_truth_value_and_nan_is_itself():
    def one(value):
        return Graph("", (Node("a", "Relu", attributes={"x": value}),))

    assert diff(one(1), one(True)) and diff(one(0.0), one(0)) and diff(one([1]), one([[1]]))
    assert not diff(one(float("nan")), one(float("nan")))


def test_graphs_on_cycles_are_compared_too():
    loop = Graph("", (Node("a", "Relu", (Edge("b"),)), Node("b", "Relu", (Edge("a"),))))
    renamed = Graph("", (Node("x", "Relu", (Edge("y"),)), Node("y", "Relu", (Edge("x"),))))
    assert not diff(loop, renamed)
    assert diff(loop, Graph("", loop.nodes[:1]))


def test_what_the_optimizer_did_to_the_example(capsys):
    """Its size of a dynamic input is read by no operator: torchair removes the input and renumbers those behind it."""
    assert main([dump("original_graph_1.txt"), dump("optimized_graph_1.pbtxt")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "- Data arg1_1() = int64[]",
        "~ Data arg2_1",
        "    attribute index: 2 -> 1",
        "~ Data arg3_1",
        "    attribute index: 3 -> 2",
        "~ Data arg4_1",
        "    attribute index: 4 -> 3",
        "1 removed, 0 added, 3 changed, 17 the same (21 -> 20 nodes)",
    ]


def test_dumps_of_different_kinds_are_the_same_but_for_what_py_leaves_out(capsys):
    assert main([dump("original_graph_1.txt"), dump("original_graph_1.pbtxt")]) == 0
    assert capsys.readouterr().out == "the same graph: 21 nodes\n"
    assert main([dump("original_graph_1.txt"), dump("original_graph_1.py"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["same"], found["removed"], found["added"]) == ("moe_graph diff 1", False, [], [])
    whats = [(change["before"], change["changes"][0]["what"]) for change in found["changed"]]
    assert whats == [("arg1_1", "attribute _host_tensor")]


def test_ges_own_form_is_the_same_graph(tmp_path):
    (graph,) = read(dump("optimized_graph_1.txt"))
    (tmp_path / "ge_onnx_1.pbtxt").write_text(onnx_text.encode(graph))
    (found,) = read(tmp_path / "ge_onnx_1.pbtxt")
    assert not diff(graph, found) and not diff(found, graph)
    edited = replace(found, nodes=tuple(node for node in found.nodes if node.type != "Data"))
    assert {node.type for node in diff(graph, edited).removed} == {"Data"}


@pytest.mark.parametrize("bad", ["missing.txt", "model.py", "."])
def test_what_cannot_be_read_has_a_status_of_its_own(bad, capsys):
    assert main([dump("original_graph_1.txt"), str(DUMPS / bad)]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and err.startswith(str(DUMPS / bad if bad != "." else DUMPS))


@pytest.mark.parametrize("edited", ["MatMul", "Softmax", "Const", "Add"])
def test_an_edit_in_one_of_many_equal_layers_is_that_edit(edited):
    before = generated.layers(8)
    for node in [node for node in before.nodes if node.type == edited]:
        after, _ = generated.disguised(generated.changed(before, node, attributes={**node.attributes, "new": 1}), 0)
        assert reported(diff(before, after)) == only(changed={node.name: [("attribute new", None, 1)]})


def test_a_layer_less_is_a_layer_removed():
    found = diff(generated.layers(8), generated.layers(7))
    assert sorted(node.type for node in found.removed) == ["Add", "Const", *["MatMul"] * 5, "Softmax"]
    assert not found.added and {change.what for node in found.changed for change in node.changes} == {"input 0"}


@pytest.mark.slow
@pytest.mark.parametrize("told_apart", [True, False])
def test_five_thousand_nodes_take_seconds(told_apart):
    before = generated.graph(0, 4500, told_apart)
    node = generated.operators(before)[2000]
    edited = generated.changed(before, node, attributes={"axis": 7})
    after = replace(edited, nodes=tuple(replace(node, name=node.name) for node in edited.nodes))
    assert len(before.nodes) > 5000
    start = time.perf_counter()
    found = diff(before, after)
    assert time.perf_counter() - start < 20
    assert [changed.before.name for changed in found.changed] == [node.name] and not found.removed and not found.added


def test_reading_what_diff_needs_from_a_folder_of_one(tmp_path, capsys):
    text = Path(dump("original_graph_1.txt")).read_text()
    (tmp_path / "dynamo_original_graph_1.txt").write_text(text)
    assert main([str(tmp_path), dump("original_graph_1.txt")]) == 0
    assert len(read(tmp_path)) == 1


def test_a_node_that_everything_reads_does_not_hide_the_others():
    """A chain whose nodes all read one constant, two of them changed: those two, found without looking at every reader for each."""
    tensor = Descriptor("float32", (4,))
    nodes = [Node("x", "Data", outputs=(tensor,), attributes={"index": 0}), Node("c", "Const", outputs=(tensor,))]
    for at in range(300):
        nodes.append(Node(f"a{at}", "Add", (Edge(f"a{at - 1}" if at else "x"), Edge("c")), (), (tensor,)))
    nodes.append(Node("out", "NetOutput", (Edge("a299"),), outputs=(tensor,)))
    others = [replace(node, attributes={"new": 1}) if node.name in ("a100", "a200") else node for node in nodes]
    found = diff(Graph("before", tuple(nodes), "txt"), Graph("after", tuple(others), "txt"))
    assert [(node.before.name, node.after.name) for node in found.changed] == [("a100", "a100"), ("a200", "a200")]
    assert not found.added and not found.removed
