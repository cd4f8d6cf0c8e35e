"""A graph as a static picture (SVG), light or dark as the viewer is. The layout is the page's."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from moe_graph.dumps.layout import Point
from moe_graph.dumps.layout_view import Box, view
from moe_graph.dumps.model import Graph

# XML 1.0 has no place for these, not even escaped.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_STYLE = """
svg { background: #fff; font-family: ui-sans-serif, system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
text { text-anchor: middle; font-size: 11px; fill: #5b6472; }
.t { font-size: 12.5px; font-weight: 600; fill: #1c2430; }
.m { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 10px; }
rect { fill: #f6f7f9; stroke: #c3c9d2; }
path { fill: none; stroke: #a9b1bd; stroke-width: 1.2; }
path.c { stroke-dasharray: 4 3; }
path.p { stroke: #d08a2e; stroke-width: 1.8; }
marker path { fill: #a9b1bd; stroke: none; }
.input rect { fill: #e8f1fb; stroke: #8db4dc; }
.output rect { fill: #e9f5ec; stroke: #8fc3a0; }
.constant rect { fill: #fff; stroke: #d9dde3; }
.shape rect { fill: #fff; stroke: #c3c9d2; stroke-dasharray: 4 3; }
.conversion rect { fill: #fff; }
.on rect { stroke: #d08a2e; stroke-width: 1.6; }
.moe rect { fill: #fbe9cf; stroke: #c0700f; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
svg { background: #14181f; }
text { fill: #98a2b1; }
.t { fill: #e8ecf2; }
rect { fill: #222934; stroke: #465162; }
path { stroke: #5d6878; }
path.p, .on rect { stroke: #c98a35; }
marker path { fill: #5d6878; }
.input rect { fill: #1b2c40; stroke: #41658c; }
.output rect { fill: #1b3325; stroke: #447a57; }
.constant rect, .shape rect, .conversion rect { fill: #191f28; }
.moe rect { fill: #4a3413; stroke: #e0a04a; }
}
"""


def write(graph: Graph, path: str | Path) -> None:
    """Write the graph to an SVG file."""
    Path(path).write_text(svg(graph), encoding="utf-8")


def svg(graph: Graph, hide: Collection[str] | None = None) -> str:
    """The graph as SVG. hide: kinds of nodes left out; None leaves constants and shape arithmetic out of large graphs."""
    shown = view(graph, hide)
    layout = shown.layout
    left_out = len(graph.nodes) - len(shown.boxes)
    title = f"{graph.name}: {len(graph.nodes)} nodes" + (f", {left_out} not shown" if left_out else "")
    width, height = f"{layout.width:.0f}", f"{layout.height:.0f}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        ' markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    for (start, end, data), route in zip(shown.lines, layout.routes):
        on_path = shown.boxes[start].on_path and shown.boxes[end].on_path
        words = " ".join([*["c"] * (not data), *["p"] * on_path])
        parts.append(f'<path{f" class={chr(34)}{words}{chr(34)}" if words else ""} d="{curve(route)}"{_END}/>')
    parts += [_box(box, centre) for box, centre in zip(shown.boxes, layout.centres)]
    return "\n".join([*parts, "</svg>\n"])


_END = ' marker-end="url(#end)"'


def curve(route: Sequence[Point]) -> str:
    """A route as a path: straight along layers, bent between them."""
    text = f"M{route[0][0]:.1f} {route[0][1]:.1f}"
    for at in range(1, len(route)):
        (x0, y0), (x1, y1) = route[at - 1], route[at]
        if at % 2 == 0:  # along a layer, beside its boxes
            text += f"L{x1:.1f} {y1:.1f}"
        else:
            middle = (y0 + y1) / 2
            text += f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    return text


def _box(box: Box, centre: Point) -> str:
    x, y = centre
    top = y - box.height / 2
    node = box.node
    words = f"{box.kind}{' on' if box.on_path else ''}"
    tip = "\n".join([node.name, node.type, *[str(output) for output in node.outputs], *node.source, node.fx]).strip()
    parts = [
        f'<g class="{words}"><title>{_text(tip)}</title>'
        f'<rect x="{x - box.width / 2:.1f}" y="{top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="6"/>'
    ]
    for at, line in enumerate(box.lines):
        kind = ' class="t"' if at == 0 else (' class="m"' if at == len(box.lines) - 1 else "")
        parts.append(f'<text{kind} x="{x:.1f}" y="{top + 18 + 15 * at:.1f}">{_text(line)}</text>')
    return "".join([*parts, "</g>"])


def _text(text: str) -> str:
    return escape(_NO_XML.sub("\ufffd", text))
