"""`python -m moe_graph diff A B`: what differs between two dumps of graphs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_graph.dumps.diff import ChangedNode, Difference, diff
from moe_graph.dumps.inspect import node_dict
from moe_graph.dumps.model import Graph, Node
from moe_graph.dumps.reading import newest, original_of, read
from moe_graph.dumps.reading_errors import DumpError
from moe_graph.dumps.summary import plain

SCHEMA = "moe_graph diff 1"
SAME, DIFFER, UNREADABLE = 0, 1, 2
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if the graphs are the same, 1 if they differ, 2 if one cannot be read."""
    parser = argparse.ArgumentParser(
        prog="moe-graph diff",
        description="What differs between two dumps of graphs, of any kinds. Nodes are matched by structure, not by name.",
        epilog="exit status: 0 the same, 1 different, 2 not readable",
    )
    parser.add_argument(
        "before",
        metavar="A",
        help="a dump of one graph; alone: a folder, whose last graph is compared, as it was lowered "
        "with as it was optimized",
    )
    parser.add_argument("after", metavar="B", nargs="?", help="a dump of one graph")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    try:
        if options.after is None:
            options.before, options.after = _stages(options.before)
        before, after = _one(options.before), _one(options.after)
    except DumpError as error:
        print(error, file=sys.stderr)
        return UNREADABLE
    found = diff(before, after)
    if options.json:
        print(json.dumps({"schema": SCHEMA, **as_dict(found)}, indent=2, allow_nan=False))
    else:
        for line in lines(before, after, found):
            print(line.translate(_CONTROL))
    return DIFFER if found else SAME


def _stages(folder: str) -> tuple[str, str]:
    """The dumps of the folder's last graph, before and after torchair's optimizer."""
    if not Path(folder).is_dir():
        raise DumpError(f"{folder}: two dumps are compared, or the last graph of a folder; this is one, and no folder")
    optimized = newest(folder)
    original = original_of(optimized)
    print(f"{original.name} -> {optimized.name}", file=sys.stderr)
    return str(original), str(optimized)


def _one(path: str) -> Graph:
    graphs = read(path)
    if len(graphs) != 1:
        raise DumpError(
            f"{path}: holds {len(graphs)} graphs ({', '.join(graph.name for graph in graphs)}); name a dump of one"
        )
    return graphs[0]


def as_dict(found: Difference) -> dict[str, Any]:
    """As JSON holds it. Keys and their meaning stay."""
    return {
        "same": not found,
        "removed": [node_dict(node) for node in found.removed],
        "added": [node_dict(node) for node in found.added],
        "changed": [
            {
                "before": node.before.name,
                "after": node.after.name,
                "type": node.before.type,
                "changes": [
                    {"what": change.what, "before": plain(change.before), "after": plain(change.after)}
                    for change in node.changes
                ],
            }
            for node in found.changed
        ],
    }


def lines(before: Graph, after: Graph, found: Difference) -> list[str]:
    """As text: "-" a node that is gone, "+" one that is new, "~" one that changed, with a line for each change."""
    if not found:
        return [f"the same graph: {len(before.nodes)} nodes"]
    result = [f"- {_node(node)}" for node in found.removed]
    result += [f"+ {_node(node)}" for node in found.added]
    for node in found.changed:
        result.append(f"~ {_names(node)}")
        result += [f"    {change.what}: {_value(change.before)} -> {_value(change.after)}" for change in node.changes]
    count = len(found.same_as) - len(found.changed)
    result.append(
        f"{len(found.removed)} removed, {len(found.added)} added, {len(found.changed)} changed, {count} the same "
        f"({len(before.nodes)} -> {len(after.nodes)} nodes)"
    )
    return result


def _node(node: Node) -> str:
    inputs = ", ".join("-" if edge is None else f"{edge.node}:{edge.output}" for edge in node.inputs)
    outputs = ", ".join(map(str, node.outputs))
    return f"{node.type} {node.name}({inputs}){outputs and f' = {outputs}'}"


def _names(node: ChangedNode) -> str:
    names = node.before.name if node.before.name == node.after.name else f"{node.before.name}, now {node.after.name}"
    return f"{node.before.type} {names}"


def _value(value: Any) -> str:
    text = "nothing" if value is None or value == [] else str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."
