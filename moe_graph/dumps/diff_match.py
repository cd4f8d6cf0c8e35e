"""Which nodes of two graphs are the same, by structure: names are generated and mean nothing.

Nodes are numbered by what surrounds them. "below" sums up everything a node depends on, "above" everything that depends on it, a
neighbourhood what lies within some steps either way. Equal numbers in both graphs, alone on both sides, are the same node. A change
somewhere alters "below" of all that follows it and "above" of all that precedes it, but never both: so one after the other finds the
rest. Then what stands in the same place, read by and reading nodes already found, is the same node, changed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from itertools import islice
from typing import Any

from moe_graph.dumps.model import INPUT_TYPES, Graph, Node

_RADII = (6, 3, 1)
_ATTEMPTS = 4
_CROWD = 64  # readers of one output from which on it tells little which of them a node is
_NOBODY: deque[int] = deque()


class Numbers:
    """Gives equal things equal numbers, in both graphs."""

    def __init__(self) -> None:
        self.known: dict[Hashable, int] = {}

    def __call__(self, thing: Hashable) -> int:
        return self.known.setdefault(thing, len(self.known))


class Side:
    """One graph by positions: `sources` of each node as (slot, node, output), `readers` as (output, slot, node); slot -1 is control."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        position = {node.name: at for at, node in enumerate(graph.nodes)}
        self.sources: list[list[tuple[int, int, int]]] = [[] for _ in graph.nodes]
        self.readers: list[list[tuple[int, int, int]]] = [[] for _ in graph.nodes]
        for at, node in enumerate(graph.nodes):
            for slot, edge in enumerate(node.inputs):
                if edge is not None and edge.node in position:
                    source, slot = position[edge.node], -1 if edge.is_control else slot
                    self.sources[at].append((slot, source, edge.output))
                    self.readers[source].append((edge.output, slot, at))
        self._at: dict[int, dict[tuple[int, int], deque[int]]] = {}
        self.order = self._order()
        self.partner: list[int | None] = [None] * len(graph.nodes)

    def readers_at(self, at: int, output: int, slot: int) -> deque[int]:
        """The nodes that read this output of a node as their input `slot`, each once."""
        if at not in self._at:
            places: dict[tuple[int, int], dict[int, None]] = {}
            for out, place, reader in self.readers[at]:
                places.setdefault((out, place), {})[reader] = None
            self._at[at] = {place: deque(readers) for place, readers in places.items()}
        return self._at[at].get((output, slot), _NOBODY)

    def _order(self) -> list[int]:
        """Positions, each after those it depends on; those on cycles last."""
        waiting = [len(sources) for sources in self.sources]
        ready = deque(at for at, count in enumerate(waiting) if not count)
        order = []
        while ready:
            at = ready.popleft()
            order.append(at)
            for _, _, reader in self.readers[at]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
        return order + [at for at, count in enumerate(waiting) if count > 0]

    def below(self, labels: list[int], number: Numbers) -> list[int]:
        """What each node depends on, itself included."""
        found = [number(("open", label)) for label in labels]
        for at in self.order:
            sources = sorted((slot, found[source], output) for slot, source, output in self.sources[at])
            found[at] = number(("below", labels[at], tuple(sources)))
        return found

    def above(self, labels: list[int], number: Numbers) -> list[int]:
        """What depends on each node, itself included."""
        found = [number(("open", label)) for label in labels]
        for at in reversed(self.order):
            readers = sorted((output, slot, found[reader]) for output, slot, reader in self.readers[at])
            found[at] = number(("above", labels[at], tuple(readers)))
        return found

    def around(self, labels: list[int], radius: int, number: Numbers) -> list[int]:
        """What lies within `radius` steps of each node, either way."""
        found = labels
        for _ in range(radius):
            found = [
                number(
                    (
                        "around",
                        found[at],
                        tuple(sorted((slot, found[source], output) for slot, source, output in self.sources[at])),
                        tuple(sorted((output, slot, found[reader]) for output, slot, reader in self.readers[at])),
                    )
                )
                for at in range(len(found))
            ]
        return found


class Matching:
    """Pairs nodes of `a` with nodes of `b`, stage by stage, from certain to plausible."""

    def __init__(self, a: Graph, b: Graph) -> None:
        self.a, self.b = Side(a), Side(b)
        number = Numbers()
        for label in (_full, _without_tensors, _type):
            labels = [[number((label.__name__, label(node))) for node in side.nodes] for side in (self.a, self.b)]
            below, above = (
                [getattr(s, way)(ls, number) for s, ls in zip((self.a, self.b), labels)] for way in ("below", "above")
            )
            both = [[number(pair) for pair in zip(x, y)] for x, y in zip(below, above)]
            self._stage(*both, alone_only=False)
            self._stage(*above)
            self._stage(*below)
            for radius in _RADII:
                self._stage(*(side.around(ls, radius, number) for side, ls in zip((self.a, self.b), labels)))
            self._neighbours(lambda x, y, labels=labels: labels[0][x] == labels[1][y])
        self._neighbours(self._same_place)
        self._untangle()

    def _stage(self, keys_a: list[int], keys_b: list[int], alone_only: bool = True) -> None:
        """Pair nodes of equal keys: where one is left on each side, and, unless `alone_only`, where several cannot be told apart."""
        waiting: dict[int, tuple[list[int], list[int]]] = {}
        for side, keys, which in ((self.a, keys_a, 0), (self.b, keys_b, 1)):
            for at in side.order:
                if side.partner[at] is None:
                    waiting.setdefault(keys[at], ([], []))[which].append(at)
        same = self._equal(keys_a, keys_b)
        for xs, ys in waiting.values():
            if len(xs) == len(ys) == 1:
                self._pair(xs[0], ys[0], same)
        if alone_only:
            return
        for xs, ys in waiting.values():
            if len(xs) == len(ys):
                for x in xs:
                    if self.a.partner[x] is None:
                        free = (y for y in self._candidates(x) if self.b.partner[y] is None and same(x, y))
                        y = next(free, None)
                        if y is None:  # nothing tells them apart: those that are numbered alike, else in their order
                            left = [y for y in ys if self.b.partner[y] is None]
                            index = self.a.nodes[x].attributes.get("index")
                            alike = (y for y in left if self.b.nodes[y].attributes.get("index") == index)
                            y = next(alike, left[0] if left else None)
                        if y is not None:
                            self._pair(x, y, same)

    def _equal(self, keys_a: list[int], keys_b: list[int]) -> Callable[[int, int], bool]:
        return lambda x, y: keys_a[x] == keys_b[y]

    def _pair(self, x: int, y: int, same: Callable[[int, int], bool]) -> None:
        """Pair two nodes, then what stands in the same place beside them and is the same, and so on."""
        waiting = [(x, y)]
        while waiting:
            x, y = waiting.pop()
            if self.a.partner[x] is not None or self.b.partner[y] is not None or not same(x, y):
                continue
            self.a.partner[x], self.b.partner[y] = y, x
            sources = {(slot, output): source for slot, source, output in self.b.sources[y] if slot >= 0}
            for slot, source, output in self.a.sources[x]:
                other = sources.get((slot, output))
                if other is not None and self.a.partner[source] is None and self.b.partner[other] is None:
                    waiting.append((source, other))
            readers: dict[tuple[int, int], list[int]] = {}
            for output, slot, reader in self.b.readers[y]:
                if self.b.partner[reader] is None:
                    readers.setdefault((output, slot), []).append(reader)
            for output, slot, reader in self.a.readers[x]:
                others = readers.get((output, slot), ())
                if self.a.partner[reader] is None and len(others) == 1:
                    waiting.append((reader, others[0]))

    def _candidates(self, x: int) -> list[int]:
        """Nodes of `b` in the place of `x`: beside the partners of its neighbours. The one beside most of them first.

        What thousands read, a constant or a size, tells little of a reader: only where nothing else is known are its readers taken, some
        of those that are left.
        """
        votes: Counter[int] = Counter()
        crowded = []
        for slot, source, output in self.a.sources[x]:
            partner = self.a.partner[source]
            if partner is not None:
                readers = self.b.readers_at(partner, output, slot)
                if len(readers) > _CROWD:
                    crowded.append((slot, partner, output))
                else:
                    votes.update(readers)
        for output, slot, reader in self.a.readers[x]:
            partner = self.a.partner[reader]
            if partner is not None:
                votes.update({y for at, y, out in self.b.sources[partner] if (out, at) == (output, slot)})
        for slot, partner, output in crowded:
            if votes:
                votes.update(y for y in list(votes) if (slot, partner, output) in self.b.sources[y])
            else:
                readers = self.b.readers_at(partner, output, slot)
                while readers and self.b.partner[readers[0]] is not None:
                    readers.popleft()
                votes.update(islice((y for y in readers if self.b.partner[y] is None), _CROWD))
        return [y for y, _ in sorted(votes.items(), key=lambda item: (-item[1], item[0]))]

    def _neighbours(self, same: Callable[[int, int], bool]) -> None:
        """Pair what stands in the same place and is the same, best place first, until nothing is left to pair."""
        looked_at = self.a.order
        while looked_at:
            places = []
            for x in looked_at:
                if self.a.partner[x] is None:
                    free = [y for y in self._candidates(x) if self.b.partner[y] is None and same(x, y)]
                    places += [(-self._agreement(x, y), x, y) for y in free]
            beside: set[int] = set()  # of what has been paired: only of these the place is better known than before
            for _, x, y in sorted(places):
                if self.a.partner[x] is None and self.b.partner[y] is None and same(x, y):
                    self.a.partner[x], self.b.partner[y] = y, x
                    beside.update(source for _, source, _ in self.a.sources[x])
                    beside.update(reader for _, _, reader in self.a.readers[x])
            looked_at = sorted(beside)

    def _agreement(self, x: int, y: int) -> int:
        """How many edges of the two correspond, less those that contradict."""
        score = 0
        for mine, others in (
            (self.a.sources[x], {(slot, node, output) for slot, node, output in self.b.sources[y]}),
            (
                [(slot, node, output) for output, slot, node in self.a.readers[x]],
                {(slot, node, output) for output, slot, node in self.b.readers[y]},
            ),
        ):
            for slot, node, output in mine:
                partner = self.a.partner[node]
                if partner is not None:
                    score += 1 if (slot, partner, output) in others else -1
        return score

    def _untangle(self) -> None:
        """Nodes that look alike may have been paired crosswise: where an edge then seems to lead elsewhere, try the pairs straight."""
        for _ in range(_ATTEMPTS):
            changed = False
            for x in self.a.order:
                y = self.a.partner[x]
                if y is None:
                    continue
                expected = {(slot, output): source for slot, source, output in self.b.sources[y] if slot >= 0}
                for slot, source, output in self.a.sources[x]:
                    other = expected.get((slot, output))
                    if other is not None and self.a.partner[source] != other:
                        changed |= self._straighten(source, other)
            if not changed:
                return

    def _straighten(self, x: int, y: int) -> bool:
        """Pair `x` with `y` and their partners with each other, if more corresponds then."""
        old, other = self.a.partner[x], self.b.partner[y]
        if self.a.nodes[x].type != self.b.nodes[y].type:
            return False
        if old is not None and other is not None and self.a.nodes[other].type != self.b.nodes[old].type:
            return False
        before = self._worth(x, old) + self._worth(other, y)
        self._set(x, y)
        self._set(other, old)
        if self._worth(x, y) + self._worth(other, old) > before:
            return True
        self._set(x, old)
        self._set(other, y)
        return False

    def _worth(self, x: int | None, y: int | None) -> int:
        if x is None or y is None:
            return 0
        return self._agreement(x, y) + (_full(self.a.nodes[x]) == _full(self.b.nodes[y]))

    def _set(self, x: int | None, y: int | None) -> None:
        if x is not None:
            self.a.partner[x] = y
        if y is not None:
            self.b.partner[y] = x

    def _same_place(self, x: int, y: int) -> bool:
        """A node of another type in the place of `x`: every edge corresponds, both ways."""
        if _kind(self.a.nodes[x]) != _kind(self.b.nodes[y]):
            return False
        edges_x = len(self.a.sources[x]) + len(self.a.readers[x])
        edges_y = len(self.b.sources[y]) + len(self.b.readers[y])
        return edges_x == edges_y == self._agreement(x, y)


def _kind(node: Node) -> str:
    """Nodes that are never taken for one another, whatever their place."""
    return "input" if node.type in INPUT_TYPES else "constant" if node.type in ("Const", "Constant") else "operator"


def _full(node: Node) -> Hashable:
    return (*_without_tensors(node), tuple((tensor.dtype, tensor.shape) for tensor in node.outputs))


def _without_tensors(node: Node) -> tuple[Hashable, ...]:
    # Which run-time input it takes is numbering: removing one renumbers the rest.
    numbering = {"index"} if node.type in INPUT_TYPES else ()
    return node.type, frozen({key: value for key, value in node.attributes.items() if key not in numbering})


def _type(node: Node) -> Hashable:
    return node.type


def frozen(value: Any) -> Hashable:
    """A value of an attribute as something that can be compared and hashed. Numbers stay apart from truth values, NaN equals NaN."""
    if isinstance(value, Mapping):
        return "map", tuple(sorted((str(key), frozen(inner)) for key, inner in value.items()))
    if isinstance(value, (list, tuple)):
        return "list", tuple(frozen(inner) for inner in value)
    return type(value).__name__, repr(value) if isinstance(value, float) else str(value)
