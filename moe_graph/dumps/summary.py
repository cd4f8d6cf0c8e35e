"""What a graph holds, in short: inputs, outputs, types, MoE nodes, placements, dynamic dimensions, casts and transposes.

A dump of each kind of the same graph has the same summary, but for what a kind does not say at all (`Summary.comparable`).
"""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from moe_graph.dumps.model import Descriptor, Edge, Graph, Node
from moe_graph.dumps.reading_definition import OUTPUT_TYPE
from moe_graph.dumps.reading_dtypes import word_of_number
from moe_graph.dumps.reading_infer import MARKED_VIEW, TRANSPOSES, TRANSPOSING, read_by
from moe_graph.dumps.words import short_counts

MOE_TYPES = (
    *("*Moe*", "*GroupedMatmul*", "*GroupedMatMul*", "HcomAllToAll*", "*AlltoAllv*"),
    *("*_moe_*", "*grouped_matmul*", "*all_to_all*", "*alltoallv*"),  # FX operators
)
# FX operators that convert a type: a Cast of one of them is the model's own.
_CONVERTING = (
    "aten._to_copy.",
    "aten.to.",
    "prims.convert_element_type.",
    "npu.npu_dtype_cast.",
    "npu._npu_dtype_cast.",
)
MODEL, AS_VIEW, LOWERING, UNKNOWN = "model", "view", "lowering", "unknown"


@dataclass(frozen=True)
class Port:
    """An input or output, of the graph or of a node.

    Attributes:
        name: by which the operator, or the graph, knows it
        tensor: None for an optional input that is not fed
    """

    name: str
    tensor: Descriptor | None

    @property
    def dynamic(self) -> tuple[int, ...]:
        """The dimensions whose sizes are not known before the run."""
        sizes = () if self.tensor is None or self.tensor.shape is None else self.tensor.shape
        return tuple(at for at, size in enumerate(sizes) if size < 0)


@dataclass(frozen=True)
class MoeNode:
    """A node of an MoE operator.

    Attributes:
        name: its name
        type: its GE type
        inputs: what it reads
        outputs: what it gives
        attributes: without GE's notes ("_...")
        source: lines of the model's code it comes from
        fx: the FX node it was lowered from
    """

    name: str
    type: str
    inputs: tuple[Port, ...]
    outputs: tuple[Descriptor, ...]
    attributes: Mapping[str, Any]
    source: tuple[str, ...]
    fx: str


@dataclass(frozen=True)
class Conversion:
    """A Cast or Transpose, or an FX operator that converts a type. Views of an FX graph are no transposes: no kernel runs.

    Attributes:
        name: the node's name
        type: its GE type, or FX operator
        before: type that a Cast reads; "" where the dump does not say
        after: type that it gives
        permutation: of a Transpose, if it is a constant
        origin: "model": its FX operator converts or transposes; "view": torchair put off a view of the model's until an operator
            read it; "lowering": its FX operator does neither, so the lowering inserted it; "unknown": the dump names no FX node
        fx: the FX node it was lowered from
    """

    name: str
    type: str
    before: str
    after: str
    permutation: tuple[int, ...] | None
    origin: str
    fx: str

    @property
    def changes_nothing(self) -> bool:
        """Is it a Cast to the type its input has?"""
        return bool(self.before) and self.before == self.after


@dataclass(frozen=True, repr=False)
class Summary:
    """What one graph holds.

    Attributes:
        name: the graph's name
        kind: of the dump
        stage: of the dump
        inputs: of the graph, in order
        outputs: of the graph, in order
        types: how many nodes there are of each type, most frequent first
        moe: the MoE nodes, in the graph's order
        placements: device ("CPU" is the host) -> the nodes that say they are there
        dynamic: "input NAME", "output NAME", "NODE input NAME", "NODE output 0" -> its dynamic dimensions
        casts: in the graph's order
        transposes: in the graph's order
    """

    name: str
    kind: str
    stage: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    types: Mapping[str, int]
    moe: tuple[MoeNode, ...]
    placements: Mapping[str, tuple[str, ...]]
    dynamic: Mapping[str, tuple[int, ...]]
    casts: tuple[Conversion, ...]
    transposes: tuple[Conversion, ...]

    def __repr__(self) -> str:
        """One line; `as_dict` has all of it."""
        parts = f"{len(self.inputs)} inputs, {len(self.outputs)} outputs, {len(self.casts)} casts, {len(self.transposes)} transposes"
        return f"<Summary of {self.name}: {short_counts(self.types)}; {parts}>"

    def _repr_html_(self) -> str:
        """A table of the types for a notebook."""
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{count}</td></tr>" for name, count in self.types.items())
        return f"<p>{html.escape(repr(self))}</p><table><tr><th>type</th><th>nodes</th></tr>{rows}</table>"

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it. Keys and their meaning stay."""
        return {
            "name": self.name,
            "kind": self.kind,
            "stage": self.stage,
            "inputs": [_port(port) for port in self.inputs],
            "outputs": [_port(port) for port in self.outputs],
            "types": dict(self.types),
            "moe": [
                {
                    "name": node.name,
                    "type": node.type,
                    "inputs": [_port(port) for port in node.inputs],
                    "outputs": [tensor_dict(tensor) for tensor in node.outputs],
                    "attributes": plain(node.attributes),
                    "source": list(node.source),
                    "fx": node.fx,
                }
                for node in self.moe
            ],
            "placements": {device: list(names) for device, names in self.placements.items()},
            "dynamic": {where: list(dimensions) for where, dimensions in self.dynamic.items()},
            "casts": [_conversion(conversion) for conversion in self.casts],
            "transposes": [_conversion(conversion) for conversion in self.transposes],
        }

    def comparable(self) -> dict[str, Any]:
        """What every kind of dump says: the summary without its kind, and without source lines, which "py" alone knows."""
        found = self.as_dict()
        del found["kind"]
        for node in found["moe"]:
            del node["source"]
        return found


def summarise(graph: Graph) -> Summary:
    """The summary of a graph."""
    inputs = tuple(
        Port(node.name, node.outputs[0] if node.outputs else None)
        for node in sorted(graph.inputs, key=lambda node: _position(node.attributes.get("index")))
    )
    outputs = tuple(
        Port(f"{edge.node}:{edge.output}", node.outputs[at] if at < len(node.outputs) else describe(graph, edge))
        for node in graph.nodes
        if node.type == OUTPUT_TYPE
        for at, edge in enumerate(edge for edge in node.inputs if edge is not None and not edge.is_control)
    )
    moe = tuple(_moe(graph, node) for node in graph.nodes if is_moe(node))
    return Summary(
        graph.name,
        graph.kind,
        graph.stage,
        inputs,
        outputs,
        dict(sorted(graph.types.items(), key=lambda item: (-item[1], item[0]))),
        moe,
        _placements(graph),
        dict(_dynamic(inputs, outputs, moe)),
        tuple(_convert(graph, node) for node in graph.nodes if _is_cast(node)),
        tuple(_convert(graph, node) for node in graph.nodes if node.type in TRANSPOSES),
    )


def describe(graph: Graph, edge: Edge) -> Descriptor:
    """What an edge carries; of unknown type and rank if its node does not describe it."""
    outputs = graph.by_name[edge.node].outputs if edge.node in graph.by_name else ()
    return outputs[edge.output] if 0 <= edge.output < len(outputs) else Descriptor("", None)


def data_inputs(graph: Graph, node: Node) -> tuple[Port, ...]:
    """What a node reads, by the names its operator declares; by position where the dump does not say."""
    count = sum(edge is None or not edge.is_control for edge in node.inputs)
    names = (name or str(at) for at, name in enumerate((*node.input_names, *[""] * count)[:count]))
    outputs = {
        edge.node: graph.by_name[edge.node].outputs for edge in node.inputs if edge and edge.node in graph.by_name
    }
    return tuple(Port(name, read_by(node, at, outputs)) for at, name in enumerate(names))


def is_moe(node: Node) -> bool:
    """Is it of an MoE operator, grouped matmul or AlltoAll?"""
    return _is_moe(node.type)


@functools.lru_cache(maxsize=4096)
def _is_moe(kind: str) -> bool:
    return any(fnmatchcase(kind, pattern) for pattern in MOE_TYPES)


def _moe(graph: Graph, node: Node) -> MoeNode:
    attributes = {key: value for key, value in node.attributes.items() if not key.startswith("_")}
    return MoeNode(node.name, node.type, data_inputs(graph, node), node.outputs, attributes, node.source, node.fx)


def _is_cast(node: Node) -> bool:
    """GE's Cast, or an FX operator that is asked for a type; one that copies to another device only is none."""
    asked = "dtype" in node.attributes or "_to_copy" not in node.type
    return node.type == "Cast" or (node.type.startswith(_CONVERTING) and asked)


def _convert(graph: Graph, node: Node) -> Conversion:
    edges = [edge for edge in node.inputs if edge is not None and not edge.is_control]
    before = describe(graph, edges[0]).dtype if edges else ""
    if node.type not in TRANSPOSES:
        number = node.attributes.get("dst_type")
        after = word_of_number(number) if isinstance(number, int) else (node.outputs[0].dtype if node.outputs else "")
        return Conversion(node.name, node.type, before, after, None, _origin(node.fx, _CONVERTING), node.fx)
    permutation = node.attributes.get("perm")
    if permutation is None and len(edges) > 1 and edges[1].node in graph.by_name:
        permutation = graph.by_name[edges[1].node].attributes.get("value")
    known = isinstance(permutation, (list, tuple)) and all(isinstance(dimension, int) for dimension in permutation)
    after = node.outputs[0].dtype if node.outputs else ""
    origin = _origin(node.fx, tuple(TRANSPOSING))
    return Conversion(node.name, node.type, before, after, tuple(permutation) if known else None, origin, node.fx)


def _origin(fx: str, own: tuple[str, ...]) -> str:
    if not fx:
        return UNKNOWN
    if fx.startswith(MARKED_VIEW):
        return AS_VIEW
    return MODEL if fx.partition(": ")[2].startswith(own) else LOWERING


def _placements(graph: Graph) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.type != OUTPUT_TYPE:
            for device in sorted({tensor.device for tensor in node.outputs if tensor.device}):
                found.setdefault(device, []).append(node.name)
    return {device: tuple(names) for device, names in sorted(found.items())}


def _dynamic(
    inputs: tuple[Port, ...], outputs: tuple[Port, ...], moe: tuple[MoeNode, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    places = [(f"input {port.name}", port) for port in inputs]
    places += [(f"output {port.name}", port) for port in outputs]
    for node in moe:
        places += [(f"{node.name} input {port.name}", port) for port in node.inputs]
        places += [(f"{node.name} output {at}", Port("", tensor)) for at, tensor in enumerate(node.outputs)]
    for where, port in places:
        if port.dynamic:
            yield where, port.dynamic


def _position(index: Any) -> tuple[bool, int]:
    """Inputs by their index; those without one last, in the dump's order."""
    known = isinstance(index, int)
    return not known, index if known else 0


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "tensor": None if port.tensor is None else tensor_dict(port.tensor)}


def tensor_dict(tensor: Descriptor) -> dict[str, Any]:
    """A descriptor as JSON holds it: type and shape; -1 is a dynamic size, shape null an unknown rank."""
    return {"dtype": tensor.dtype, "shape": None if tensor.shape is None else list(tensor.shape)}


def _conversion(conversion: Conversion) -> dict[str, Any]:
    return {
        "name": conversion.name,
        "type": conversion.type,
        "before": conversion.before,
        "after": conversion.after,
        "permutation": None if conversion.permutation is None else list(conversion.permutation),
        "origin": conversion.origin,
        "fx": conversion.fx,
    }


def plain(value: Any) -> Any:
    """Values of attributes as strict JSON holds them: what is no finite number, text, list or map becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
