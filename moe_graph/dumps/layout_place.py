"""Coordinates within the layers: everything as near to its neighbours as the order and the widths allow.

Within one layer that is a least-squares fit under an order, which pooling adjacent violators solves exactly
(R. Barlow and others, 1972); layers take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import le

from moe_graph.dumps.layout_layers import LARGE, Layers

GAP = 26.0
BEND_GAP = 12.0
SWEEPS = 14
# A line through bends is straight before boxes are centred.
STRAIGHT = 8.0


def place(found: Layers, order: Sequence[Sequence[int]], widths: Sequence[float]) -> list[float]:
    """The middle of each box and bend."""
    offsets = [_offsets(layer, widths, found.boxes) for layer in order]
    xs = [0.0] * found.count
    for layer, offset in zip(order, offsets):
        middle = offset[-1] / 2 if offset else 0.0
        for one, x in zip(layer, offset):
            xs[one] = x - middle
    sweeps = SWEEPS if found.count < LARGE else SWEEPS // 2
    for sweep in range(sweeps):
        turn = list(zip(order, offsets))
        down = sweep % 2 == 0
        near = found.above if down else found.below
        if sweep == sweeps - 2:  # the last two look both ways
            both = [upper + lower for upper, lower in zip(found.above, found.below)]
        for layer, offset in turn if down else reversed(turn):
            _place_layer(layer, offset, both if sweep >= sweeps - 2 else near, xs, found.boxes)
    return xs


def _place_layer(
    layer: Sequence[int], offset: Sequence[float], near: Sequence[Sequence[int]], xs: list[float], boxes: int
) -> None:
    """Move a layer as near to its neighbours as its order allows."""
    wanted, weights = [], []
    for one, own in zip(layer, offset):
        others = near[one]
        if len(others) == 1:  # most often
            wanted.append(xs[others[0]] - own)
            weights.append(STRAIGHT if one >= boxes and others[0] >= boxes else 1.0)
        elif one < boxes:
            total = len(others)
            wanted.append((sum([xs[other] for other in others]) / total if total else xs[one]) - own)
            weights.append(total or 0.1)
        else:  # a bend, both ways
            pulls = [STRAIGHT if other >= boxes else 1.0 for other in others]
            total = sum(pulls)
            wanted.append(sum([xs[other] * pull for other, pull in zip(others, pulls)]) / total - own)
            weights.append(total)
    for one, own, x in zip(layer, offset, isotonic(wanted, weights)):
        xs[one] = x + own


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The values that never fall and have the least weighted squared distance to those given."""
    if all(map(le, values, values[1:])):
        return list(values)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for mean, weight in zip(values, weights):
        size = 1
        while blocks and blocks[-1][0] > mean:
            other, other_weight, other_size = blocks.pop()
            mean = (mean * weight + other * other_weight) / (weight + other_weight)
            weight, size = weight + other_weight, size + other_size
        blocks.append((mean, weight, size))
    return [mean for mean, _, size in blocks for _ in range(size)]


def _offsets(layer: Sequence[int], widths: Sequence[float], boxes: int) -> list[float]:
    """How far each is from the first when all are packed."""
    found, x = [], 0.0
    for before, one in zip((None, *layer), layer):
        if before is not None:
            gap = GAP if before < boxes and one < boxes else BEND_GAP
            x += (widths[before] + widths[one]) / 2 + gap
        found.append(x)
    return found
