"""A graph as Graphviz text: `dot -Tpdf graph.dot`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from moe_graph.dumps.layout_view import CONSTANT, INPUT, MOE, OUTPUT, SHAPE, hidden_at_first, kinds_of, moe_path
from moe_graph.dumps.model import Graph, Node

_FILL = {INPUT: "#e8f1fb", OUTPUT: "#e9f5ec", MOE: "#fbe9cf", CONSTANT: "#ffffff", SHAPE: "#ffffff"}


def write(graph: Graph, path: str | Path) -> None:
    """Write the graph to a file in the DOT language."""
    Path(path).write_text(dot(graph), encoding="utf-8", errors="backslashreplace")


def dot(graph: Graph, hide: Collection[str] | None = None) -> str:
    """The graph in the DOT language. hide: kinds of nodes left out; None leaves constants and shape arithmetic out of large graphs."""
    kinds, path = kinds_of(graph), moe_path(graph)
    hide = hidden_at_first(graph) if hide is None else hide
    shown = {node.name for node in graph.nodes if kinds[node.name] not in hide}
    lines = [
        f"digraph {quoted(graph.name)} {{",
        '  node [shape=box style="rounded,filled" fillcolor="#f6f7f9" color="#c3c9d2" fontname="Helvetica" fontsize=11];',
        '  edge [color="#8a93a0" fontname="Helvetica" fontsize=9];',
    ]
    for node in graph.nodes:
        if node.name in shown:
            color = f' color="#c0700f" penwidth={2 if kinds[node.name] == MOE else 1}' if node.name in path else ""
            fill = f' fillcolor="{_FILL[kinds[node.name]]}"' if kinds[node.name] in _FILL else ""
            lines.append(f"  {quoted(node.name)} [label={_label(node)}{fill}{color}];")
    for node in graph.nodes:
        for edge in node.inputs if node.name in shown else ():
            if edge is not None and edge.node in shown:
                style = " [style=dashed]" if edge.is_control else ""
                lines.append(f"  {quoted(edge.node)} -> {quoted(node.name)}{style};")
    return "\n".join([*lines, "}\n"])


def quoted(text: str) -> str:
    r"""The text in quotes, `"` and `\` escaped: a label shows it as it was, an identifier keeps its backslashes doubled.

    NUL, which the language has no place for, becomes U+FFFD.
    """
    return '"' + text.replace("\0", "\ufffd").replace("\\", "\\\\").replace('"', '\\"') + '"'


def _label(node: Node) -> str:
    lines = [node.type, node.name, *[str(output) for output in node.outputs[:4] if output.dtype]]
    if len(node.outputs) > 4:
        lines.append(f"{len(node.outputs) - 4} more")
    return '"' + "\\n".join(quoted(line)[1:-1] for line in lines) + '"'
