"""A GE graph from its definition: a GraphDef in memory, the text of one (torchair's "txt", GE's `ge_proto_*.txt`), torchair's "pbtxt"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moe_graph.dumps.model import CONTROL, Edge, Graph, Node
from moe_graph.dumps.reading_errors import DumpError
from moe_graph.dumps.reading_infer import MARKED_VIEW, VIEW_TYPES, complete
from moe_graph.dumps.reading_text import Message, parse
from moe_graph.dumps.reading_values import attribute, descriptor, entries, first, fx_note, text

# Names and positions of inputs and outputs, which a Node holds itself, and a constant's value once more as text.
BOOKKEEPING = frozenset(
    {"_input_name_key", "_input_name_value", "_output_name_key", "_output_name_value", "_readable_value"}
)
OUTPUT_TYPE = "NetOutput"
MOST_OUTPUTS = 1 << 16  # of an operator; more are no graph's, and what lists outputs would take minutes and gigabytes


def from_definition(definition: Any, as_noted: bool = False) -> Graph:
    """A GraphDef in memory (torchair's, or a `GeGraph` around one) as a Graph. Needs no NPU.

    With `as_noted` the types and shapes are what the graph itself says, also where its operators make others certain.

    Raises DumpError that names the node: two of one name, an input from a node that is not there.
    """
    tree = _tree(definition)
    return _plain_graph(tree) if as_noted else graph_of(tree)


def graph_of(tree: Message) -> Graph:
    """A GraphDef, read as text."""
    return complete(_plain_graph(tree))


def _plain_graph(tree: Message) -> Graph:
    return check(Graph(text(first(tree, "name", b"")), tuple(_operator(op) for op in tree.get("op", ()))))


def graph_of_nodes(tree: Message) -> Graph:
    """torchair's "pbtxt": nodes as TensorFlow writes them, whose attributes hold the text of GE's attributes and descriptors."""
    nodes = []
    for node in tree.get("node", ()):
        attributes, inputs, outputs = [], [], []
        for entry in node.get("attr", ()):
            key = text(first(entry, "key", b""))
            value = parse(text(first(first(entry, "value", {}), "s", b"")))
            if key.startswith("[i]"):
                inputs.append(value)
            elif key.startswith("[o]"):
                outputs.append(value)
            else:
                attributes.append({"key": [key], "value": [value]})
        operator = {
            "name": node.get("name", []),
            "type": node.get("op", []),
            "input": [_data_or_control(text(reference)) for reference in node.get("input", ())],
            "attr": attributes,
            "input_desc": inputs,
            "output_desc": outputs,
        }
        nodes.append(_operator(operator))
    return complete(check(Graph("", tuple(nodes))))


def _data_or_control(reference: str) -> str:
    return f"{reference[1:]}:-1" if reference.startswith("^") else reference


def _operator(op: Message) -> Node:
    kind = text(first(op, "type", b""))
    name = text(first(op, "name", b""))
    if not name or not kind:
        raise DumpError(f"a node without a {'type' if name else 'name'}: {name or kind or op}")
    edges = [edge(text(reference), name) for reference in op.get("input", ())]
    inputs, outputs = op.get("input_desc", ()), op.get("output_desc", ())
    notes = [fx_note(desc) for desc in outputs]
    # An attribute without a value says nothing: protobuf makes one where torchair only looks for it.
    attributes = {
        key: attribute(value) for key, value in sorted(entries(op, "attr").items()) if value and key not in BOOKKEEPING
    }
    # NetOutput describes what it hands out as inputs.
    described = inputs if kind == OUTPUT_TYPE else outputs
    return Node(
        name,
        kind,
        in_order(edges),
        tuple(text(first(desc, "name", b"")) for desc in inputs),
        tuple(map(descriptor, described)),
        attributes,
        fx=fx_of(kind, notes, any("_meta" in entries(desc, "attr") for desc in outputs)),
        input_tensors=tuple(None if e is None else descriptor(desc) for e, desc in zip(in_order(edges), inputs)),
    )


def fx_of(kind: str, notes: Iterable[str], has_tensor: bool) -> str:
    """The FX node an operator names; that it is a view where it names none, but torchair did note the FX tensor."""
    return next(filter(None, notes), MARKED_VIEW if has_tensor and kind in VIEW_TYPES else "")


def edge(reference: str, reader: str) -> Edge | None:
    """ "name:0", or "name:-1" for an order without data; "" is an optional input that is not fed."""
    if not reference:
        return None
    name, _, output = reference.rpartition(":")
    try:
        return Edge(name, int(output))
    except ValueError:
        raise DumpError(f"node {reader!r} reads {reference!r}, which is not NAME:OUTPUT") from None


def in_order(edges: list[Edge | None]) -> tuple[Edge | None, ...]:
    """Data in the operator's order, then the orders without data."""
    return (*(e for e in edges if e is None or e.output != CONTROL), *(e for e in edges if e and e.output == CONTROL))


def check(graph: Graph) -> Graph:
    """The graph, if its names are distinct and its edges lead to outputs of its nodes. Raises DumpError otherwise."""
    if len(graph.by_name) != len(graph.nodes):
        seen: set[str] = set()
        twice = next(node.name for node in graph.nodes if node.name in seen or seen.add(node.name))
        raise DumpError(f"two nodes are named {twice!r}")
    for node in graph.nodes:
        for found in node.inputs:
            if found is not None and found.node not in graph.by_name:
                raise DumpError(
                    f"node {node.name!r} reads {found.node!r}, but no node has that name: is the dump cut off?"
                )
            if found is not None and not CONTROL <= found.output < MOST_OUTPUTS:
                raise DumpError(
                    f"node {node.name!r} reads output {found.output} of {found.node!r}, which no operator has"
                )
    return graph


def _tree(message: Any) -> Message:
    """A protobuf message as its text would be read."""
    tree: Message = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            tree[field.name] = [
                {"key": [key], "value": [_tree(entry) if hasattr(entry, "ListFields") else entry]}
                for key, entry in sorted(value.items())
            ]
        else:
            repeated = hasattr(value, "extend")  # its containers tell; the descriptor does so in newer versions only
            tree[field.name] = [_leaf(field, element) for element in (value if repeated else (value,))]
    return tree


def _leaf(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return _tree(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value.encode("utf-8", errors="surrogateescape") if isinstance(value, str) else value
