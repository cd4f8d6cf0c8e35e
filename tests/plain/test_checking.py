"""`inspect --check`: graphs as torchair writes them have no error, and faults that are put into them are found."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from moe_graph.checking import dumps
from moe_graph.checking.graph import check_graph
from moe_graph.checking.shapes import check_shapes
from moe_graph.definitions import known
from moe_graph.dumps import inspect
from moe_graph.dumps.reading import read
from moe_graph.dumps.reading_definition import from_definition
from moe_graph.foundation import cann

pytestmark = pytest.mark.skipif(not cann.torch_npu_is_installed(), reason="the definitions are torchair's")

DUMPS = Path(__file__).parents[1] / "dumps"
TEXT = DUMPS / "dynamo_optimized_graph_1.txt"
STRUCTURE = ("Data", "Const", "NetOutput")


@functools.cache
def _read():
    return dumps._definition(TEXT.read_text())


def definition():
    graph = type(_read())()
    graph.CopyFrom(_read())
    return graph


def errors(graph):
    return [f for f in check_graph(from_definition(graph)) + check_shapes(graph) if f.severity == "error"]


def unknown_type(node):
    node.type = node.type + "New"
    return True


def unknown_input(node):
    for desc, reference in zip(node.input_desc, node.input):
        if reference:
            desc.name = "never"
            return True
    return False


def input_not_fed(node):
    kinds = {port.name: port.kind for port in known.find(node.type).inputs}
    for at, desc in enumerate(node.input_desc):
        if kinds.get(desc.name) == "required":
            node.input[at] = ""
            return True
    return False


def unknown_attribute(node):
    node.attr["never"].i = 1
    return True


def attribute_of_another_kind(node):
    for name in sorted(node.attr):
        if not name.startswith("_"):
            was = node.attr[name].WhichOneof("value")
            node.attr[name].Clear()
            if was == "s":
                node.attr[name].i = 1
            else:
                node.attr[name].s = b"text"
            return True
    return False


def required_attribute_missing(node):
    for attribute in known.find(node.type).attributes:
        if attribute.required and attribute.name in node.attr:
            del node.attr[attribute.name]
            return True
    return False


def one_output_more(node):
    if any(port.kind == "dynamic" for port in known.find(node.type).outputs):
        return False
    node.output_desc.add().CopyFrom(node.output_desc[0])
    return True


def another_shape(node):
    for desc in node.output_desc:
        note = desc.attr["_meta"].s.decode() if "_meta" in desc.attr else ""
        if "torch.Size([" in note and "s" not in note.rpartition("([")[2] and "_fx_tensor_name" in desc.attr:
            desc.attr["_meta"].s = note.replace("torch.Size([", "torch.Size([5, ").encode()
            desc.shape.dim.insert(0, 5) if desc.shape.dim else None
            return True
    return False


FAULTS = (
    unknown_type,
    unknown_input,
    input_not_fed,
    unknown_attribute,
    attribute_of_another_kind,
    required_attribute_missing,
    one_output_more,
    another_shape,
)


def test_graphs_of_torchair_have_no_error():
    for graph in read(DUMPS):
        assert [str(f) for f in check_graph(graph) if f.severity == "error"] == [], graph.name
    assert errors(definition()) == []


def test_generated_faults_are_found():
    total, missed = 0, []
    for fault in FAULTS:
        count = len(definition().op)
        for at in range(count):
            graph = definition()
            node = graph.op[at]
            if node.type in STRUCTURE or not fault(node):
                continue
            total += 1
            if not errors(graph):
                missed.append(f"{fault.__name__} of {node.name}")
    assert total >= 40
    assert len(missed) <= 0.05 * total, missed


def test_the_command(capsys, tmp_path):
    assert inspect.main([str(TEXT), "--check"]) == 0
    assert "nodes, 0 errors" in capsys.readouterr().out
    graph = definition()
    next(node for node in graph.op if node.type == "MoeReRouting").type = "MoeReRoute"
    from google.protobuf import text_format

    path = tmp_path / TEXT.name
    path.write_text(text_format.MessageToString(graph))
    assert inspect.main([str(path), "--check"]) == 1
    shown = capsys.readouterr().out
    assert "(MoeReRoute): no GE type of this name is known; moe_graph.plugins.define declares one" in shown
