"""A graph as an ONNX file, which viewers such as Netron open. It is a picture: nothing runs a GE operator from it.

GE's nodes are nodes of the domain "ge", inputs of the graph are inputs, what NetOutput reads are outputs. Needs the package onnx.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from moe_graph.dumps.layout_view import sources_first
from moe_graph.dumps.model import INPUT_TYPES, Descriptor, Edge, Graph, Node
from moe_graph.dumps.reading_definition import OUTPUT_TYPE
from moe_graph.dumps.summary import describe, plain

DOMAIN = "ge"
# ONNX has no order without data: the names of the nodes waited for.
CONTROL_INPUTS = "_control_inputs"
# IR version 8 (ONNX 1.10 to 1.12) is the newest that all viewers still in use read, and holds all that is written here.
_IR_VERSION = 8
# Words of a Descriptor -> names in onnx.TensorProto.DataType; what is in neither is UNDEFINED.
_DTYPES = {
    "float32": "FLOAT",
    "float": "FLOAT",
    "float64": "DOUBLE",
    "double": "DOUBLE",
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
    "string": "STRING",
    "complex64": "COMPLEX64",
    "complex128": "COMPLEX128",
    "float8_e4m3fn": "FLOAT8E4M3FN",
    "float8_e5m2": "FLOAT8E5M2",
    "int4": "INT4",
    "uint4": "UINT4",
}


def write(graph: Graph, path: str | Path) -> None:
    """Write the graph to an ONNX file. Raises ImportError, which says what to install, if the package onnx is missing."""
    Path(path).write_bytes(model(graph).SerializeToString())


def model(graph: Graph) -> Any:
    """The graph as an onnx.ModelProto.

    Dimensions that are not known before the run are named after their tensor and axis; a type ONNX lacks is UNDEFINED; bools are
    integers and what ONNX has no attribute for is JSON. FX node, source lines and input names are in the nodes' descriptions.
    Raises ImportError as `write`.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"an ONNX file needs the package onnx ({error}): pip install onnx") from error
    return _Writer(onnx, graph).model()


class _Writer:
    def __init__(self, onnx: Any, graph: Graph) -> None:
        self.onnx, self.graph = onnx, graph
        self.values: dict[Edge, str] = {}
        self._name_values()

    def model(self) -> Any:
        """The ModelProto."""
        onnx, graph = self.onnx, self.graph
        found = onnx.ModelProto(ir_version=_IR_VERSION, producer_name="moe_graph")
        found.opset_import.add(domain=DOMAIN, version=1)
        found.graph.name = _text(graph.name) or "graph"
        found.graph.doc_string = _text(" ".join(word for word in (graph.kind, graph.stage) if word))
        for node in sorted(graph.inputs, key=_index):
            # ONNX knows one output of an input.
            found.graph.input.append(self._value(Edge(node.name), node))
        for edge in self._outputs():
            found.graph.output.append(self._value(edge))
        public = {value.name for value in (*found.graph.input, *found.graph.output)}
        for edge, name in self.values.items():
            tensor = describe(graph, edge)
            if name not in public and (tensor.dtype or tensor.shape is not None):
                found.graph.value_info.append(self._value(edge))
        for node in sources_first(graph):
            if node.type not in INPUT_TYPES and node.type != OUTPUT_TYPE:
                found.graph.node.append(self._node(node))
        return found

    def _name_values(self) -> None:
        """A name for each output that a node describes or another reads."""
        counts = {node.name: len(node.outputs) for node in self.graph.nodes}
        for edge in (edge for node in self.graph.nodes for edge in node.inputs):
            if edge is not None and not edge.is_control:
                counts[edge.node] = max(counts.get(edge.node, 0), edge.output + 1)
        used = {""}
        for name, count in counts.items():
            node = self.graph.by_name.get(name)
            if node is not None and node.type == OUTPUT_TYPE:
                continue
            own = node is not None and node.type in INPUT_TYPES
            for output in range(max(count, 1) if own else count):
                value = _text(name if own and output == 0 else f"{name}:{output}")
                while value in used:
                    value += "'"
                used.add(value)
                self.values[Edge(name, output)] = value

    def _outputs(self) -> list[Edge]:
        """What the NetOutput reads, each once; without one, what nobody reads."""
        ends = [node for node in self.graph.nodes if node.type == OUTPUT_TYPE]
        if ends:
            read = [edge for node in ends for edge in node.inputs if edge is not None and not edge.is_control]
            return list(dict.fromkeys(read))
        inputs = {node.name for node in self.graph.inputs}
        used = {edge for node in self.graph.nodes for edge in node.inputs}
        return [edge for edge in self.values if edge not in used and edge.node not in inputs]

    def _value(self, edge: Edge, node: Node | None = None) -> Any:
        tensor = describe(self.graph, edge)
        value = self.onnx.ValueInfoProto(name=self.values[edge])
        kind = value.type.tensor_type
        kind.elem_type = self.onnx.TensorProto.DataType.Value(self._dtype(tensor))
        if tensor.shape is not None:
            kind.shape.SetInParent()  # a scalar has a shape too
            for axis, size in enumerate(tensor.shape):
                if size < 0:
                    kind.shape.dim.add(dim_param=f"{value.name}.{axis}")
                else:
                    kind.shape.dim.add(dim_value=size)
        if node is not None:
            value.doc_string = _text(json.dumps(plain(node.attributes), ensure_ascii=False)) if node.attributes else ""
        return value

    def _dtype(self, tensor: Descriptor) -> str:
        word = _DTYPES.get(tensor.dtype, "UNDEFINED")
        # Versions of onnx before 1.14 lack the eight-bit floats, those before 1.16 the four-bit integers.
        return word if word in self.onnx.TensorProto.DataType.keys() else "UNDEFINED"

    def _node(self, node: Node) -> Any:
        found = self.onnx.NodeProto(op_type=_text(node.type), name=_text(node.name), domain=DOMAIN)
        data = [edge for edge in node.inputs if edge is None or not edge.is_control]
        found.input.extend("" if edge is None else self.values[edge] for edge in data)
        outputs: list[str] = []
        while Edge(node.name, len(outputs)) in self.values:
            outputs.append(self.values[Edge(node.name, len(outputs))])
        found.output.extend(outputs)
        for key, value in node.attributes.items():
            found.attribute.append(self._attribute(key, value))
        waits = [edge.node for edge in node.inputs if edge is not None and edge.is_control]
        if waits:
            found.attribute.append(self._attribute(CONTROL_INPUTS, waits))
        names = f"inputs: {', '.join(name or '?' for name in node.input_names)}" if any(node.input_names) else ""
        found.doc_string = _text("\n".join(line for line in (node.fx, *node.source, names) if line))
        return found

    def _attribute(self, key: str, value: Any) -> Any:
        found = self.onnx.AttributeProto(name=_text(key))
        kinds = self.onnx.AttributeProto
        items = list(value) if isinstance(value, (list, tuple)) else None
        if isinstance(value, str):
            found.type, found.s = kinds.STRING, _text(value).encode()
        elif _is_int(value):
            found.type, found.i = kinds.INT, int(value)
        elif _is_float(value):
            found.type, found.f = kinds.FLOAT, value
        elif items is not None and all(_is_int(item) for item in items):
            found.type = kinds.INTS
            found.ints.extend(int(item) for item in items)
        elif items is not None and all(_is_float(item) for item in items):
            found.type = kinds.FLOATS
            found.floats.extend(items)
        elif items is not None and all(isinstance(item, str) for item in items):
            found.type = kinds.STRINGS
            found.strings.extend(_text(item).encode() for item in items)
        else:
            found.type, found.s = kinds.STRING, _text(json.dumps(plain(value), ensure_ascii=False)).encode()
        return found


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _is_float(value: Any) -> bool:
    """A float that the single precision of ONNX's attributes has room for."""
    if not isinstance(value, float):
        return False
    try:
        struct.pack("<f", value)
    except OverflowError:
        return False
    return math.isfinite(value)


def _index(node: Node) -> tuple[bool, int]:
    index = node.attributes.get("index")
    return not isinstance(index, int), index if isinstance(index, int) else 0


def _text(text: str) -> str:
    """As protobuf takes it: in UTF-8, which lone surrogates are not in."""
    return text.encode("utf-8", "replace").decode("utf-8")
