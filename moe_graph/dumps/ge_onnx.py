"""GE's own dumps in onnx's form: `ge_onnx_*.pbtxt`, written by CANN when DUMP_GE_GRAPH is set.

The text of a ModelProto in which every node's `op_type` is "ge:" and GE's type, every edge is "NAME:OUTPUT" (-1: an order without
data), and whatever GE knows of a node is an attribute. `output_desc_dtype:0`, `output_desc_shape:0`, `output_desc_layout:0`,
`output_desc_device_type:0` describe its first output. A graph called by a node follows as a node of type "subgraph" that holds it.
Source: GE's encoder, `ge_ir_utils.cc` of Ascend's metadef.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from moe_graph.dumps.model import INPUT_TYPES, Descriptor, Graph, Node
from moe_graph.dumps.reading_definition import BOOKKEEPING, OUTPUT_TYPE, check, edge, fx_of, in_order
from moe_graph.dumps.reading_dtypes import word
from moe_graph.dumps.reading_errors import DumpError
from moe_graph.dumps.reading_infer import CONSTANT_TYPES, complete
from moe_graph.dumps.reading_text import Message
from moe_graph.dumps.reading_values import first, fx_meta, fx_name, known_shape, text

_PREFIX = "ge:"
_SUBGRAPH = "subgraph"
# What GE keeps of every node: numbering, memory, the edges once more.
_GE_BOOKKEEPING = BOOKKEEPING | frozenset(
    "id stream_id input_name src_name src_index dst_name dst_index input_i output_i workspace workspace_bytes is_input_const".split()
)
_VALUE_FIELDS = {"FLOAT": "f", "INT": "i", "STRING": "s", "TENSOR": "t", "GRAPH": "g"}
_DESCRIPTION = re.compile(r"(input|output)_desc_(?:nums|(\w+):(\d+)(?:_\d+)?)")
_VALUE_DESCRIPTION = re.compile(r"value_desc_(dtype|shape|layout|device_type)")


def graphs_of(tree: Message) -> list[Graph]:
    """The graphs of a ModelProto: the first, and those its nodes call. Raises DumpError that says what is wrong."""
    found = []
    waiting = list(tree.get("graph", ()))
    while waiting:
        graph = waiting.pop(0)
        nodes = []
        for node in graph.get("node", ()):
            if text(first(node, "op_type", b"")) == _SUBGRAPH:
                waiting += [inner for value in node.get("attribute", ()) for inner in value.get("g", ())]
            else:
                nodes.append(_node(node))
        found.append(complete(check(Graph(text(first(graph, "name", b"")), tuple(nodes)))))
    return found


def _node(node: Message) -> Node:
    name, op_type = text(first(node, "name", b"")), text(first(node, "op_type", b""))
    if not name or not op_type.startswith(_PREFIX):
        raise DumpError(f"node {name!r} is of type {op_type!r}: GE writes a name and 'ge:TYPE'")
    values = {text(first(value, "name", b"")): _value(value) for value in node.get("attribute", ())}
    kind = op_type[len(_PREFIX) :]
    descriptions: dict[str, dict[int, dict[str, Any]]] = {"input": {}, "output": {}}
    attributes = {}
    for key, value in values.items():
        match = _DESCRIPTION.fullmatch(key)
        if match is None:
            attributes[key] = value
        elif match[2] is not None:
            descriptions[match[1]].setdefault(int(match[3]), {})[match[2]] = value
    described = descriptions["input" if kind == OUTPUT_TYPE else "output"]
    outputs = tuple(_descriptor(described.get(at, {})) for at in range(max(described, default=-1) + 1))
    notes = (
        str(description.get("attr__fx_tensor_name", "")) for _, description in sorted(descriptions["output"].items())
    )
    edges = [edge(text(reference), name) for reference in node.get("input", ())]
    if kind in INPUT_TYPES and edges == [None]:  # what feeds an input is written as an input that is not fed
        edges = []
    parsed = Node(
        name,
        kind,
        in_order(edges),
        _input_names(values, sum(1 for e in edges if e is None or not e.is_control)),
        outputs,
        {key: value for key, value in sorted(attributes.items()) if key not in _GE_BOOKKEEPING},
        fx=fx_of(kind, map(fx_name, notes), any("attr__meta" in found for found in descriptions["output"].values())),
        input_tensors=tuple(
            None if e is None else _descriptor(descriptions["input"].get(at, {}))
            for at, e in enumerate(e for e in edges if e is None or not e.is_control)
        ),
    )
    return _constant(parsed) if kind in CONSTANT_TYPES else parsed


def _value(value: Message) -> Any:
    """An AttributeProto's value. A number that is zero is not written, nor a list that is empty: the type says what is meant."""
    kind = text(first(value, "type", "UNDEFINED"))
    field = _VALUE_FIELDS.get(kind, kind.lower())
    if kind in ("FLOAT", "FLOATS"):
        value = {
            **value,
            field: [float(element) for element in value.get(field, ()) if isinstance(element, (int, float))],
        }
    found = [text(element) if isinstance(element, bytes) else element for element in value.get(field, ())]
    if kind.endswith("S"):
        return found
    return found[-1] if found else {"INT": 0, "FLOAT": 0.0, "STRING": ""}.get(kind)


def _descriptor(description: dict[str, Any]) -> Descriptor:
    dtype = word(str(description.get("dtype", "")))
    layout, device = str(description.get("layout", "")), str(description.get("device_type", ""))
    shape = known_shape(description.get("shape", ()))
    # Before GE infers shapes, what is unknown reads like a scalar; torchair's note of the FX tensor then says more.
    noted = fx_meta(str(description.get("attr__meta", "")))
    if shape == () and noted is not None:
        shape = noted.shape
    return Descriptor(dtype, shape, layout, device)


def _input_names(values: dict[str, Any], count: int) -> tuple[str, ...]:
    names = [""] * count
    for name, at in zip(values.get("_input_name_key") or (), values.get("_input_name_value") or ()):
        if isinstance(at, int) and 0 <= at < count:
            names[at] = name
    return tuple(names)


def _constant(node: Node) -> Node:
    """A constant's tensor is dumped as a description of it, at the highest level with its bytes."""
    attributes = dict(node.attributes)
    described = {key: attributes.pop(key) for key in list(attributes) if _VALUE_DESCRIPTION.fullmatch(key)}
    data = attributes.pop("value_data", None)
    if described and "value" not in attributes:
        desc = Descriptor(
            word(str(described.get("value_desc_dtype", ""))), known_shape(described.get("value_desc_shape", ()))
        )
        attributes["value"] = str(desc) if data is None else f"{desc} {data!r}"
    return replace(node, attributes=attributes)
