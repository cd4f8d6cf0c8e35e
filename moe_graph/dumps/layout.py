"""Where boxes and lines of a picture go: a layered layout, from top to bottom, written where the picture is written.

The method is Sugiyama's (K. Sugiyama, S. Tagawa, M. Toda, 1981): layers (layout_layers), order within them (layout_order),
coordinates (layout_place). A page with 5,000 nodes has to open at once and the SVG has to show the same picture, so neither
a layout library of the browser's nor one that takes minutes will do. Nothing but Python's standard library is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_graph.dumps.layout_layers import Layers, layers
from moe_graph.dumps.layout_order import arrange
from moe_graph.dumps.layout_place import place

LAYER_GAP = 46.0
MARGIN = 24.0
# Points of bend a layout may have; beyond it the longest lines run straight.
BENDS = 40_000

Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """centres [boxes] of the boxes, routes [lines] from the lower edge of a box to the upper edge of another; all within width x height."""

    centres: tuple[Point, ...]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    height: float


def lay_out(sizes: Sequence[tuple[float, float]], lines: Sequence[tuple[int, int]]) -> Layout:
    """Boxes of the given sizes (width, height), each above those it has a line to, but for lines that close a circle.

    lines: pairs of boxes, each pair once; the order of the boxes decides where nothing else does.
    """
    if not sizes:
        return Layout((), (), 2 * MARGIN, 2 * MARGIN)
    found = layers(len(sizes), lines, BENDS)
    order = arrange(found)
    widths = [size[0] for size in sizes] + [0.0] * (found.count - len(sizes))
    xs = place(found, order, widths)
    left = min(x - width / 2 for x, width in zip(xs, widths))
    xs = [x - left + MARGIN for x in xs]
    tops, bottoms = _heights(found, order, sizes)
    middles = [(top + bottom) / 2 for top, bottom in zip(tops, bottoms)]
    centres = tuple((xs[at], middles[found.rank[at]]) for at in range(len(sizes)))
    routes = _routes(found, lines, sizes, xs, tops, bottoms, centres)
    right = max([x + width / 2 for x, width in zip(xs, widths)])
    return Layout(centres, routes, right + MARGIN, bottoms[-1] + MARGIN)


def _heights(found: Layers, order: list[list[int]], sizes: Sequence[tuple[float, float]]) -> tuple[list[float], ...]:
    tops, bottoms, y = [], [], MARGIN
    for layer in order:
        tops.append(y)
        y += max((sizes[at][1] for at in layer if at < len(sizes)), default=0.0)
        bottoms.append(y)
        y += LAYER_GAP
    return tops, bottoms


def _routes(
    found: Layers,
    lines: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[float, float]],
    xs: list[float],
    tops: list[float],
    bottoms: list[float],
    centres: tuple[Point, ...],
) -> tuple[tuple[Point, ...], ...]:
    chains = found.chains
    # Lines share the edge of a box from left to right as their other ends lie.
    leaves: dict[int, list[int]] = {}
    enters: dict[int, list[int]] = {}
    for at, (start, end) in enumerate(lines):
        leaves.setdefault(start, []).append(at)
        enters.setdefault(end, []).append(at)
    start_x, end_x = [0.0] * len(lines), [0.0] * len(lines)
    for box, own in leaves.items():
        own.sort(key=lambda at: xs[chains[at][1]])
        for at, x in zip(own, _spread(xs[box], sizes[box][0], len(own))):
            start_x[at] = x
    for box, own in enters.items():
        own.sort(key=lambda at: xs[chains[at][-2]])
        for at, x in zip(own, _spread(xs[box], sizes[box][0], len(own))):
            end_x[at] = x
    routes = []
    for at, (start, end) in enumerate(lines):
        points = [(start_x[at], centres[start][1] + sizes[start][1] / 2)]
        for bend in chains[at][1:-1]:
            rank = found.rank[bend]
            points += [(xs[bend], tops[rank]), (xs[bend], bottoms[rank])]
        points.append((end_x[at], centres[end][1] - sizes[end][1] / 2))
        routes.append(tuple(points))
    return tuple(routes)


def _spread(middle: float, width: float, count: int) -> list[float]:
    step = min(14.0, 0.7 * width / max(count, 1))
    return [middle + (at - (count - 1) / 2) * step for at in range(count)]
