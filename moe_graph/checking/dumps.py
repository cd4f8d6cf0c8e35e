"""`inspect --check`: graphs of dumps, as text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from moe_graph.checking.finding import ERROR, Finding
from moe_graph.checking.graph import check_graph
from moe_graph.dumps.model import Graph
from moe_graph.dumps.reading import files, read_file
from moe_graph.plugins import entry_points


def show(paths: Sequence[str], graphs: list[Graph]) -> int:
    """Print the findings of every graph, and how many there are; return the number of errors.

    Types that an installed plugin declares are known; one that fails is an error. A captured graph is none of GE, and is not checked.

    Args:
        paths: the dumps, of which those of kind "txt" are read once more, for their shapes.
        graphs: what was read from them.
    """
    try:
        entry_points.load()
    except entry_points.PluginError as error:
        print(f"moe_graph: {error}", file=sys.stderr)
        return 1
    shapes = _shape_findings(paths)
    errors = 0
    for graph in graphs:
        stage = f", {graph.stage}" if graph.stage else ""
        if graph.kind == "fx":
            print(f"{graph.name}{stage}: {len(graph.nodes)} nodes; not checked: a captured graph is not given to GE")
            continue
        findings = check_graph(graph) + shapes.get((graph.name, graph.stage), []) * (graph.kind == "txt")
        count = sum(finding.severity == ERROR for finding in findings)
        errors += count
        for finding in sorted(findings):
            print(finding)
        inferred = "" if graph.kind == "txt" else "; shapes are checked of txt dumps alone"
        print(f"{graph.name}{stage}: {len(graph.nodes)} nodes, {count} errors, {len(findings) - count} notes{inferred}")
    return errors


def _shape_findings(paths: Sequence[str]) -> dict[tuple[str, str], list[Finding]]:
    """By name and stage of the graph."""
    from moe_graph.checking.shapes import check_shapes

    found = {}
    for file in (file for path in paths for file in files(path) if file.suffix == ".txt"):
        for graph in read_file(file):
            if graph.kind == "txt":
                found[graph.name, graph.stage] = check_shapes(_definition(file.read_text()))
    return found


def _definition(text: str) -> Any:
    """The GraphDef of a text dump."""
    from google.protobuf import text_format

    from moe_graph.engine import proto

    return text_format.Parse(text, proto.messages().GraphDef())
