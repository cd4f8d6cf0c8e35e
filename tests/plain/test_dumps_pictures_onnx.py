"""ONNX files of graphs, read back with the package onnx."""

from __future__ import annotations

import builtins

import pytest

import pictures
from moe_graph.dumps import onnx_file
from moe_graph.dumps.model import CONTROL, Descriptor, Edge, Graph, Node

INT8 = Descriptor("int8", (2, -1), "ND", "NPU")


def _shape(value):
    kind = value.type.tensor_type
    return [size.dim_param or size.dim_value for size in kind.shape.dim] if kind.HasField("shape") else None


def _attributes(onnx, node):
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx", reason="needs the package onnx: pip install onnx")


@pytest.fixture
def written(onnx, tmp_path):
    def write(graph):
        onnx_file.write(graph, tmp_path / "g.onnx")
        found = onnx.load(tmp_path / "g.onnx")
        onnx.checker.check_model(found)
        return found

    return write


def test_the_example(onnx, written):
    found = written(pictures.routing())
    assert [(domain.domain, domain.version) for domain in found.opset_import] == [("ge", 1)]
    graph = found.graph
    assert graph.name == "graph_1"
    assert [value.name for value in graph.input] == ["arg0_1", "arg1_1", "arg2_1"]
    assert [_shape(value) for value in graph.input] == [[16384, 7168], [16, 16], [16384]]
    kinds = [onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in graph.input]
    assert kinds == ["INT8", "INT32", "FLOAT"]
    (node,) = graph.node
    assert (node.domain, node.op_type, node.name) == ("ge", "MoeReRouting", "MoeReRouting")
    assert list(node.input) == ["arg0_1", "arg1_1", "arg2_1"]
    assert list(node.output) == [value.name for value in graph.output] == [f"MoeReRouting:{at}" for at in range(4)]
    assert _attributes(onnx, node) == {"expert_token_num_type": 1, "idx_type": 0}
    assert "npu.npu_moe_re_routing.default" in node.doc_string and "graph_mode.py:27" in node.doc_string


def test_every_node_is_there_after_what_it_reads(onnx, written):
    whole = pictures.layers(3)
    found = written(Graph(whole.name, whole.nodes[::-1])).graph
    inputs = {node.name for node in whole.nodes if node.type == "Data"}
    assert {value.name for value in found.input} == inputs
    assert {node.name for node in found.node} == {node.name for node in whole.nodes} - inputs - {"NetOutput"}
    assert all(node.domain == "ge" for node in found.node)
    made = {value.name for value in found.input}
    for node in found.node:
        assert {name for name in node.input if name} <= made
        made |= set(node.output)
    routing = next(node for node in found.node if node.name == "layer0/routing")
    assert list(routing.input) == ["layer0/gather:0", "layer0/counts:0", ""]
    shapes = {value.name: _shape(value) for value in found.value_info}
    assert shapes["layer0/gather:0"] == ["layer0/gather:0.0", 256]
    assert shapes["layer0/rows:0"] == [] and shapes["layer0/sizes:0"] is None


def test_attributes_keep_their_values(onnx, written):
    values = {
        "whole": 3,
        "flag": True,
        "real": 0.5,
        "text": "é\ud800",
        "wholes": [1, -2],
        "reals": (0.5, 1.0),
        "texts": ["a", "b"],
        "none": [],
        "mixed": [1, "a", None],
        "map": {"a": [1]},
        "huge": 2**70,
        "endless": float("inf"),
        "wide": 1e300,
    }
    nodes = (Node("a", "Const", outputs=(INT8,), attributes=values), Node("b", "Cast", (Edge("a"), Edge("a", CONTROL))))
    first, second = written(Graph("g", nodes)).graph.node
    found = _attributes(onnx, first)
    assert {key: found[key] for key in ("whole", "flag", "real", "text")} == {
        "whole": 3,
        "flag": 1,
        "real": 0.5,
        "text": "é?".encode(),
    }
    assert list(found["wholes"]) == [1, -2] and list(found["reals"]) == [0.5, 1.0]
    assert list(found["texts"]) == [b"a", b"b"] and list(found["none"]) == []
    assert found["mixed"] == b'[1, "a", null]' and found["map"] == b'{"a": [1]}'
    assert found["huge"] == str(2**70).encode() and found["endless"] == b'"inf"' and found["wide"] == b"1e+300"
    assert list(second.input) == ["a:0"] and list(_attributes(onnx, second)["_control_inputs"]) == [b"a"]


def test_without_net_output_what_nobody_reads_is_the_output(written):
    nodes = (
        Node("x", "Data", outputs=(INT8,)),
        Node("a", "Sort", (Edge("x"),), outputs=(INT8, INT8)),
        Node("b", "Cast", (Edge("a"),), outputs=(Descriptor("hifloat8", (2,)),)),
    )
    found = written(Graph("g", nodes)).graph
    assert [(value.name, value.type.tensor_type.elem_type) for value in found.output] == [("a:1", 3), ("b:0", 0)]


def test_names_that_collide_are_told_apart(written):
    nodes = (
        Node("a:0", "Data", outputs=(INT8,)),
        Node("a", "Cast", (Edge("a:0"),), outputs=(INT8,)),
        Node("NetOutput", "NetOutput", (Edge("a"), Edge("a"), Edge("a:0"))),
    )
    found = written(Graph("g", nodes)).graph
    assert [list(node.input) + list(node.output) for node in found.node] == [["a:0", "a:0'"]]
    assert [value.name for value in found.output] == ["a:0'", "a:0"]


def test_without_the_package_the_error_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "onnx":
            raise ImportError("No module named 'onnx'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="pip install onnx"):
        onnx_file.write(pictures.routing(), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())
