"""The order of boxes and bends within each layer, with few crossings: barycentres, swept down and up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from moe_graph.dumps.layout_layers import LARGE, Layers

SWEEPS = 12


def arrange(found: Layers) -> list[list[int]]:
    """The layers, each in the order that gave the fewest crossings."""
    order = _start(found)
    at = [0.0] * found.count
    for layer in order:
        _number(layer, at)
    best, fewest = [list(layer) for layer in order], crossings(order, found.below)
    idle = 0
    for sweep in range(SWEEPS if found.count < LARGE else SWEEPS // 2):
        down = sweep % 2 == 0
        others = found.above if down else found.below
        for layer in order if down else reversed(order):
            if len(layer) > 1:
                _sort(layer, others, at)
        count = crossings(order, found.below)
        idle = 0 if count < fewest else idle + 1
        if not idle:
            best, fewest = [list(layer) for layer in order], count
        if not count or idle == 2:  # neither way brings more
            break
    return best


def crossings(order: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> int:
    """How often pieces of lines cross between adjacent layers."""
    found = 0
    for upper, lower in zip(order, order[1:]):
        if len(upper) == 1 or len(lower) == 1:
            continue
        at = {one: place for place, one in enumerate(lower)}
        # Pieces from the same box do not cross: in this order each crosses what lies before it and ends behind it.
        ends = [end for one in upper for end in sorted([at[other] for other in below[one]])]
        seen: list[int] = []
        last = 0
        for end in ends:
            if end >= last:
                seen.append(end)
                last = end
            else:
                place = bisect_right(seen, end)
                found += len(seen) - place
                seen.insert(place, end)
    return found


def _start(found: Layers) -> list[list[int]]:
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
            stack += [*reversed(found.above[one]), *reversed(found.below[one])]
    return order


def _number(layer: list[int], at: list[float]) -> None:
    size = len(layer)
    for place, one in enumerate(layer):
        at[one] = (place + 0.5) / size


def _sort(layer: list[int], others: Sequence[Sequence[int]], at: list[float]) -> None:
    """By the mean place of the others that each is connected with."""
    means = {}
    for one in layer:
        near = others[one]
        if len(near) == 1:  # most often
            means[one] = at[near[0]]
        else:
            means[one] = sum([at[other] for other in near]) / len(near) if near else at[one]
    layer.sort(key=means.__getitem__)
    _number(layer, at)
