"""Every node of a graph against the definition of its GE type.

The definitions are those that were declared, torchair's text of some 1,700 types, and what `moe_graph.operators` declares of types that
CANN alone knows. An unknown type, input or attribute, a missing required one or one of another kind is an error. A data type that the
definition does not list is a note: the text lags behind CANN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moe_graph.checking.finding import ERROR, NOTE, Finding
from moe_graph.definitions import known
from moe_graph.definitions.definition import DYNAMIC, REQUIRED, Attribute, Definition, Port
from moe_graph.dumps.model import Descriptor, Graph, Node
from moe_graph.dumps.reading_dtypes import BY_WORD
from moe_graph.engine import signatures
from moe_graph.engine.graph import NOTES

# The graph's own nodes, which are no operators.
_STRUCTURE = frozenset({"Data", "RefData", "Const", "Constant", "NetOutput"})
# What the operator's page lists and torchair's text does not, by type and input or output.
_NEWER_DTYPES = {
    # torch_npu documentation, npu_moe_re_routing: A2 and A3 take float16, bfloat16 and int8, 950 the 8-bit floats as well.
    "MoeReRouting": dict.fromkeys(
        ("tokens", "permute_tokens"), ("DT_BF16", "DT_FLOAT8_E5M2", "DT_FLOAT8_E4M3FN", "DT_FLOAT8_E8M0")
    )
    | dict.fromkeys(("per_token_scales", "permute_per_token_scales"), ("DT_FLOAT8_E8M0",)),
}
_IS_KIND = {
    "Int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "Float": lambda value: isinstance(value, float),
    "Bool": lambda value: isinstance(value, bool),
    "String": lambda value: isinstance(value, str),
    "Type": lambda value: isinstance(value, (int, str)) and not isinstance(value, bool),
}


def check_graph(graph: Graph) -> list[Finding]:
    """What GE would refuse in the graph, node by node, and what it may refuse (notes)."""
    return [finding for node in graph.nodes if node.type not in _STRUCTURE for finding in check_node(graph, node)]


def check_node(graph: Graph, node: Node) -> Iterator[Finding]:
    """The findings of one node."""
    name = f"{node.name} ({node.type})"
    source = node.source[-1] if node.source else ""
    definition = known.find(node.type) or signatures.definition_of(node.type)
    if definition is None:
        text = "no GE type of this name is known; moe_graph.plugins.define declares one"
        yield Finding(ERROR, name, text, source)
        return
    for text in (*_inputs(node, definition), *_outputs(node, definition), *_attributes(node, definition)):
        yield Finding(ERROR, name, text, source)
    for text in _dtypes(graph, node, definition):
        yield Finding(NOTE, name, text, source)


def _port_of(name: str, ports: tuple[Port, ...]) -> Port | None:
    """The port that a descriptor's name stands for: "x", or "x0" of a dynamic x."""
    for port in ports:
        if name == port.name or (port.kind == DYNAMIC and re.fullmatch(re.escape(port.name) + r"\d+", name)):
            return port
    return None


def _names(ports: tuple[Any, ...]) -> str:
    return ", ".join(port.name for port in ports) or "none"


def _inputs(node: Node, definition: Definition) -> Iterator[str]:
    fed = [edge for edge in node.inputs if edge is None or not edge.is_control]
    named = dict(zip(node.input_names, fed))
    if "" in named or len(node.input_names) != len(fed):
        return  # the dump does not name its inputs
    seen = set()
    for name, edge in named.items():
        port = _port_of(name, definition.inputs)
        if port is None:
            if edge is not None:
                yield f"it has no input {name!r}; it has {_names(definition.inputs)}"
        elif edge is not None:
            seen.add(port.name)
    for port in definition.inputs:
        if port.kind == REQUIRED and port.name not in seen:
            yield f"input {port.name!r} is required, and is not fed"


def _outputs(node: Node, definition: Definition) -> Iterator[str]:
    dynamic = any(port.kind == DYNAMIC for port in definition.outputs)
    count = len(definition.outputs)
    if not dynamic and node.outputs and len(node.outputs) != count:
        yield f"it has {len(node.outputs)} outputs; {count} are defined: {_names(definition.outputs)}"


def _attributes(node: Node, definition: Definition) -> Iterator[str]:
    by_name = {attribute.name: attribute for attribute in definition.attributes}
    for name, value in node.attributes.items():
        if name.startswith("_") or name in NOTES:
            continue
        if name not in by_name:
            yield f"it has no attribute {name!r}; it has {_names(definition.attributes)}"
        elif not _is_of(by_name[name], value):
            yield f"attribute {name!r} must be of kind {by_name[name].kind}, got {value!r}"
    for attribute in definition.attributes:
        if attribute.required and attribute.name not in node.attributes:
            yield f"attribute {attribute.name!r} ({attribute.kind}) is required, and is missing"


def _is_of(attribute: Attribute, value: Any) -> bool:
    if value is None:
        return True  # the dump does not say
    kind = attribute.kind
    while kind.startswith("List"):
        if not isinstance(value, list):
            return False
        if not value:
            return True  # an empty list is of every kind
        kind, value = kind[len("List") :], value[0]
    return _IS_KIND[kind](value)


def _dtypes(graph: Graph, node: Node, definition: Definition) -> Iterator[str]:
    newer: Mapping[str, tuple[str, ...]] = _NEWER_DTYPES.get(node.type, {})
    described = [
        *((name, tensor, definition.inputs, "input") for name, tensor in _input_tensors(graph, node)),
        *((port.name, tensor, definition.outputs, "output") for port, tensor in zip(definition.outputs, node.outputs)),
    ]
    for name, tensor, ports, what in described:
        port = _port_of(name, ports)
        ge_type = BY_WORD.get(tensor.dtype)
        if port is None or ge_type is None or not port.dtypes:
            continue
        allowed = (*port.dtypes, *newer.get(port.name, ()))
        if ge_type.name not in allowed:
            words = ", ".join(name.removeprefix("DT_").lower() for name in allowed)
            yield f"{what} {name!r} is {tensor.dtype}; the definition lists {words}"


def _input_tensors(graph: Graph, node: Node) -> Iterator[tuple[str, Descriptor]]:
    for name, edge in zip(node.input_names, node.inputs):
        source = None if edge is None or edge.is_control else graph.by_name.get(edge.node)
        if name and edge is not None and source is not None and edge.output < len(source.outputs):
            yield name, source.outputs[edge.output]
