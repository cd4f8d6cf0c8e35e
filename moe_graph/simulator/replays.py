"""What each launch of a captured graph gave, replay by replay, and the first one that gave a NaN or an infinity.

    with moe_graph.simulator.replays.trace() as seen:
        graph.replay()
    print(seen.first_non_finite)

Seen are the launches of operators that Python computes, and communication. `npu_moe_re_routing` and copies run in the C runtime and
make no numbers of their own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe_graph.engine.trace import Statistics, statistics_of
from moe_graph.simulator.runtime import captured, launches


@dataclass(frozen=True)
class Launch:
    """One launch in one replay.

    Attributes:
        graph: the graph's number, in the order of capture in this process
        replay: which replay of the graph, from 1 on
        position: among the launches of the graph, from 0 on
        operator: its name with overload
        line: of the program that launched it at the capture
        outputs: "float32[2, 3]" for each tensor it gave
        statistics: of each of these
    """

    graph: int
    replay: int
    position: int
    operator: str
    line: str
    outputs: tuple[str, ...]
    statistics: tuple[Statistics, ...]

    @property
    def is_finite(self) -> bool:
        """Has no output a NaN or an infinity?"""
        return not any(one.nan or one.inf for one in self.statistics)

    def __str__(self) -> str:
        values = "; ".join(f"{output}: {one}" for output, one in zip(self.outputs, self.statistics))
        return f"graph {self.graph}, replay {self.replay}, launch {self.position}, {self.operator} at {self.line}: {values}"


@dataclass
class Replays:
    """The record of `trace`.

    Attributes:
        launches: in the order in which they ran
    """

    launches: list[Launch] = field(default_factory=list)

    @property
    def first_non_finite(self) -> Launch | None:
        """The first launch with a NaN or an infinity in an output, or None."""
        return next((launch for launch in self.launches if not launch.is_finite), None)


@contextlib.contextmanager
def observed(observe: Callable[[int, int, str, list[Tensor]], None]) -> Iterator[None]:
    """Call `observe` after each launch with the graph's number, the position, the operator and CPU tensors on the memory of the results."""

    def tell(graph: captured.Graph, position: int, results: Any) -> None:
        observe(graph.number, position, graph.names[position], _flat(results))

    with _observing(tell):
        yield


@contextlib.contextmanager
def trace() -> Iterator[Replays]:
    """Record every launch of the replays inside, in all threads of the process."""
    seen, lock = Replays(), threading.Lock()

    def observe(graph: captured.Graph, position: int, results: Any) -> None:
        tensors = [value for value in _flat(results) if value.numel()]
        made = Launch(
            graph.number,
            graph.replays,
            position,
            graph.names[position],
            graph.lines[position],
            tuple(f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}" for value in tensors),
            tuple(statistics_of(value) for value in tensors),
        )
        with lock:
            seen.launches.append(made)

    with _observing(observe):
        yield seen


@contextlib.contextmanager
def _observing(observer: Callable[[captured.Graph, int, Any], None]) -> Iterator[None]:
    launches.replay_observers.append(observer)
    try:
        yield
    finally:
        launches.replay_observers.remove(observer)


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.layout == torch.strided else []
    return [tensor for item in value for tensor in _flat(item)] if isinstance(value, (list, tuple)) else []
