"""The order of boxes and bends within each layer, with few crossings: barycentres, swept down and up."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence

from moe_graph.dumps.layout_layers import LARGE, Layers

SWEEPS = 12


def arrange(found: Layers) -> list[list[int]]:
    """The layers, each in the order that gave the fewest crossings."""
    above: list[list[int]] = [[] for _ in range(found.count)]
    below: list[list[int]] = [[] for _ in range(found.count)]
    for upper, lower in found.pairs:
        above[lower].append(upper)
        below[upper].append(lower)
    order = _start(found, above, below)
    at = [0.0] * found.count
    for layer in order:
        _number(layer, at)
    best, fewest = [list(layer) for layer in order], crossings(order, below)
    for sweep in range(SWEEPS if found.count < LARGE else SWEEPS // 2):
        down = sweep % 2 == 0
        for layer in order if down else reversed(order):
            others = above if down else below
            layer.sort(key=lambda one: _mean(others[one], at, at[one]))
            _number(layer, at)
        count = crossings(order, below)
        if count < fewest:
            best, fewest = [list(layer) for layer in order], count
        if not count:
            break
    return best


def crossings(order: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> int:
    """How often pieces of lines cross between adjacent layers."""
    found = 0
    for upper, lower in zip(order, order[1:]):
        at = {one: place for place, one in enumerate(lower)}
        seen: list[int] = []
        for one in upper:
            ends = [at[other] for other in below[one]]
            for end in ends:
                found += len(seen) - bisect_right(seen, end)
            for end in ends:
                insort(seen, end)
    return found


def _start(found: Layers, above: list[list[int]], below: list[list[int]]) -> list[list[int]]:
    """Each box beside what it is connected with: a walk in depth from the boxes without a source."""
    order: list[list[int]] = [[] for _ in range(max(found.rank) + 1)]
    seen = [False] * found.count
    for first in range(found.count):
        stack = [first]
        while stack:
            one = stack.pop()
            if seen[one]:
                continue
            seen[one] = True
            order[found.rank[one]].append(one)
            stack += [*reversed(above[one]), *reversed(below[one])]
    return order


def _number(layer: list[int], at: list[float]) -> None:
    size = len(layer)
    for place, one in enumerate(layer):
        at[one] = (place + 0.5) / size


def _mean(others: list[int], at: list[float], own: float) -> float:
    if len(others) == 1:  # most often
        return at[others[0]]
    return sum([at[other] for other in others]) / len(others) if others else own
