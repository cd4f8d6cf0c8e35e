"""Coordinates within the layers: everything as near to its neighbours as the order and the widths allow.

Within one layer that is a least-squares fit under an order, which pooling adjacent violators solves exactly
(R. Barlow and others, 1972); layers take turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from moe_graph.dumps.layout_layers import LARGE, Layers

GAP = 26.0
BEND_GAP = 12.0
SWEEPS = 14
# A line through bends is straight before boxes are centred.
STRAIGHT = 8.0


def place(found: Layers, order: Sequence[Sequence[int]], widths: Sequence[float]) -> list[float]:
    """The middle of each box and bend."""
    above: list[list[tuple[int, float]]] = [[] for _ in range(found.count)]
    below: list[list[tuple[int, float]]] = [[] for _ in range(found.count)]
    for upper, lower in found.pairs:
        weight = STRAIGHT if upper >= found.boxes and lower >= found.boxes else 1.0
        above[lower].append((upper, weight))
        below[upper].append((lower, weight))
    both = [upper + lower for upper, lower in zip(above, below)]
    offsets = [_offsets(layer, widths, found.boxes) for layer in order]
    xs = [0.0] * found.count
    for layer, offset in zip(order, offsets):
        middle = offset[-1] / 2 if offset else 0.0
        for one, x in zip(layer, offset):
            xs[one] = x - middle
    sweeps = SWEEPS if found.count < LARGE else SWEEPS // 2
    for sweep in range(sweeps):
        turn = list(zip(order, offsets))
        last = sweep >= sweeps - 2
        for layer, offset in turn if sweep % 2 == 0 else reversed(turn):
            wanted, weights = [], []
            for one, own in zip(layer, offset):
                near = both[one] if last else (above if sweep % 2 == 0 else below)[one]
                if len(near) == 1:  # most often
                    other, total = near[0]
                    wanted.append(xs[other] - own)
                else:
                    total = sum([weight for _, weight in near]) or 0.1
                    middle = sum([xs[other] * weight for other, weight in near]) / total if near else xs[one]
                    wanted.append(middle - own)
                weights.append(total)
            for one, own, x in zip(layer, offset, isotonic(wanted, weights)):
                xs[one] = x + own
    return xs


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The values that never fall and have the least weighted squared distance to those given."""
    if len(values) == 1:
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
