"""Which layer each box is in, and the bends of the lines that cross layers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

LARGE = 10_000  # boxes and bends; half of the sweeps must do beyond it, or the page takes longer to write than to read


@dataclass(frozen=True)
class Layers:
    """Boxes are 0 ... boxes - 1, bends follow up to count - 1.

    rank    [count] the layer of each
    chains  [lines] boxes and bends along each line, start and end included; without bends where a line runs straight
    above   [count] the neighbours of each in the layer above, through the pieces of all lines that have their bends
    below   [count] those in the layer below
    """

    boxes: int
    count: int
    rank: list[int]
    chains: list[list[int]]
    above: list[list[int]]
    below: list[list[int]]


def layers(boxes: int, lines: Sequence[tuple[int, int]], bends: int) -> Layers:
    """Each box in the layer its longest way from above leads to, those with no fewer readers than sources next to their readers.

    At most `bends` bends are made, for short lines before long ones.
    """
    rank = _ranks(boxes, lines)
    chains = [[start, end] for start, end in lines]
    above: list[list[int]] = [[] for _ in range(boxes)]
    below: list[list[int]] = [[] for _ in range(boxes)]
    count, left = boxes, bends
    spans = [rank[end] - rank[start] for start, end in lines]
    for at in sorted(range(len(lines)), key=spans.__getitem__):
        start, end = lines[at]
        span = spans[at]
        if span < 1 or span - 1 > left:
            continue
        left -= span - 1
        if span > 1:
            made = range(count, count + span - 1)
            chains[at] = [start, *made, end]
            rank.extend(range(rank[start] + 1, rank[end]))
            above += [[one] for one in (start, *made[:-1])]
            below += [[one] for one in (*made[1:], end)]
            count += span - 1
        above[end].append(chains[at][-2])
        below[start].append(chains[at][1])
    return Layers(boxes, count, rank, chains, above, below)


def _ranks(boxes: int, lines: Sequence[tuple[int, int]]) -> list[int]:
    above: list[list[int]] = [[] for _ in range(boxes)]
    below: list[list[int]] = [[] for _ in range(boxes)]
    for start, end in lines:
        if start != end:
            above[end].append(start)
            below[start].append(end)
    order = _topological(above, below)
    place = {box: at for at, box in enumerate(order)}
    # A line against the order closes a circle: it decides no layer.
    above = [[other for other in own if place[other] < place[box]] for box, own in enumerate(above)]
    below = [[other for other in own if place[other] > place[box]] for box, own in enumerate(below)]
    rank = [0] * boxes
    for box in order:
        rank[box] = max((rank[other] + 1 for other in above[box]), default=0)
    # Lines get shorter when what has no fewer readers than sources moves down to them, whole chains of it too.
    for _ in range(2):
        for box in reversed(order):
            if below[box] and len(below[box]) >= len(above[box]):
                rank[box] = min(rank[other] for other in below[box]) - 1
        for box in order:
            if len(above[box]) > len(below[box]):
                rank[box] = max(rank[other] + 1 for other in above[box])
    used = {old: new for new, old in enumerate(sorted(set(rank)))}
    return [used[old] for old in rank]


def _topological(above: list[list[int]], below: list[list[int]]) -> list[int]:
    missing = [len(own) for own in above]
    ready = deque(box for box, count in enumerate(missing) if not count)
    done = [False] * len(above)
    order: list[int] = []
    rest = iter(range(len(above)))
    while len(order) < len(above):
        if not ready:  # a circle: the first box in it goes before what it waits for
            ready.append(next(box for box in rest if not done[box]))
        box = ready.popleft()
        if done[box]:
            continue
        done[box] = True
        order.append(box)
        for other in below[box]:
            missing[other] -= 1
            if not missing[other] and not done[other]:
                ready.append(other)
    return order
