"""What differs between two graphs: nodes added and removed, and of the others attributes, types, shapes, edges.

Names are no difference, nor the order of nodes that do not depend on each other. What only one of the two says (a type or shape that
the other leaves open) is none either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moe_graph.dumps.diff_match import Matching, frozen
from moe_graph.dumps.model import Descriptor, Edge, Graph, Node
from moe_graph.dumps.reading_infer import CONSTANT_TYPES


@dataclass(frozen=True)
class Change:
    """One thing that changed of a node.

    Attributes:
        what: "type", "attribute NAME", "output 0 dtype", "output 0 shape", "output 0 format", "output 0 device", "outputs" (their
            number), "input NAME" (or its position), "order after" (edges without data)
        before: its value in the first graph
        after: its value in the second
    """

    what: str
    before: Any
    after: Any


@dataclass(frozen=True)
class ChangedNode:
    """The same node in both graphs.

    Attributes:
        before: in the first
        after: in the second
        changes: all that changed of it
    """

    before: Node
    after: Node
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Difference:
    """What differs between two graphs; false if nothing does.

    Attributes:
        removed: nodes that only the first has
        added: nodes that only the second has
        changed: nodes of both that are not the same in both
        same_as: for each node of the first that is in both which it is in the second, by names
    """

    removed: tuple[Node, ...]
    added: tuple[Node, ...]
    changed: tuple[ChangedNode, ...]
    same_as: dict[str, str]

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.changed)


def diff(before: Graph, after: Graph) -> Difference:
    """What differs from `before` to `after`, matched by structure."""
    if (before.kind == "onnx") != (after.kind == "onnx"):
        before, after = _as_onnx_says(before), _as_onnx_says(after)
    matching = Matching(before, after)
    partner = {
        node.name: after.nodes[other].name for node, other in zip(before.nodes, matching.a.partner) if other is not None
    }
    changed = []
    for node in before.nodes:
        if node.name in partner:
            other = after.by_name[partner[node.name]]
            changes = (*_own_changes(node, other), *_edge_changes(node, other, partner))
            if changes:
                changed.append(ChangedNode(node, other, changes))
    found = set(partner.values())
    return Difference(
        tuple(node for node in before.nodes if node.name not in partner),
        tuple(node for node in after.nodes if node.name not in found),
        tuple(changed),
        partner,
    )


def _as_onnx_says(graph: Graph) -> Graph:
    """The graph without what GE's form leaves out: it has no truth values, and of constants it tells type and shape."""
    nodes = []
    for node in graph.nodes:
        attributes = {key: int(value) if isinstance(value, bool) else value for key, value in node.attributes.items()}
        if node.type in CONSTANT_TYPES:
            attributes.pop("value", None)
        nodes.append(replace(node, attributes=attributes))
    return replace(graph, nodes=tuple(nodes))


def _own_changes(node: Node, other: Node) -> list[Change]:
    changes = []
    if node.type != other.type:
        changes.append(Change("type", node.type, other.type))
    missing = object()
    for key in sorted({*node.attributes, *other.attributes}):
        before, after = node.attributes.get(key, missing), other.attributes.get(key, missing)
        if before is missing or after is missing or frozen(before) != frozen(after):
            changes.append(
                Change(f"attribute {key}", None if before is missing else before, None if after is missing else after)
            )
    if len(node.outputs) != len(other.outputs):
        changes.append(Change("outputs", len(node.outputs), len(other.outputs)))
    for at, (before, after) in enumerate(zip(node.outputs, other.outputs)):
        changes += _tensor_changes(f"output {at}", before, after)
    return changes


def _tensor_changes(where: str, before: Descriptor, after: Descriptor) -> list[Change]:
    changes = []
    for field in ("dtype", "shape", "format", "device"):
        was, now = getattr(before, field), getattr(after, field)
        said = was is not None and now is not None and was != "" and now != ""
        if said and was != now:
            changes.append(Change(f"{where} {field}", was, now))
    return changes


def _edge_changes(node: Node, other: Node, partner: dict[str, str]) -> list[Change]:
    changes = []
    before = [edge for edge in node.inputs if edge is None or not edge.is_control]
    after = [edge for edge in other.inputs if edge is None or not edge.is_control]
    for at in range(max(len(before), len(after))):
        was, now = (edges[at] if at < len(edges) else None for edges in (before, after))
        if _moved(was, partner) != _shown(now):
            names = (names[at] for names in (node.input_names, other.input_names) if at < len(names) and names[at])
            changes.append(Change(f"input {next(names, at)}", _shown(was), _shown(now)))
    order_before = sorted(edge.node for edge in node.inputs if edge is not None and edge.is_control)
    order_after = sorted(edge.node for edge in other.inputs if edge is not None and edge.is_control)
    if sorted(str(partner.get(name)) for name in order_before) != order_after:
        changes.append(Change("order after", order_before, order_after))
    return changes


def _moved(edge: Edge | None, partner: dict[str, str]) -> str | None:
    """The edge as the other graph would have it; of a node that is gone, what no edge there is."""
    if edge is None:
        return None
    return f"{partner[edge.node]}:{edge.output}" if edge.node in partner else ""


def _shown(edge: Edge | None) -> str | None:
    return None if edge is None else f"{edge.node}:{edge.output}"
