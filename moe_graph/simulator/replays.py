"""What each launch of a captured graph gives, replay by replay: for `moe_graph.trace` and `moe_graph.compare_graph`.

Seen are the launches of operators that Python computes, and communication. `npu_moe_re_routing` and copies run in the C runtime and
make no numbers of their own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from moe_graph.engine.trace import Trace
from moe_graph.simulator.runtime import captured, launches


@contextlib.contextmanager
def observed(observe: Callable[[int, int, str, list[Tensor]], None]) -> Iterator[None]:
    """Call `observe` after each launch with the graph's number, the position, the operator and CPU tensors on the memory of the results."""

    def tell(graph: captured.Graph, position: int, results: Any) -> None:
        observe(graph.number, position, graph.names[position], _flat(results))

    launches.replay_observers.append(tell)
    try:
        yield
    finally:
        launches.replay_observers.remove(tell)


@contextlib.contextmanager
def recorded(trace: Trace, all_threads: bool) -> Iterator[None]:
    """Record every launch of every replay of this thread, or of all threads, in the trace."""
    own, runs = threading.get_ident(), {}

    def begin(what: str, graph: captured.Graph) -> None:
        if what == "replay" and (all_threads or threading.get_ident() == own):
            runs[threading.get_ident(), graph.number] = trace.begin(f"captured graph {graph.number}")

    def tell(graph: captured.Graph, position: int, results: Any) -> None:
        record = runs.get((threading.get_ident(), graph.number))
        if record is not None:
            outputs = [(str(at), value) for at, value in enumerate(_flat(results))]
            record(f"launch {position}", graph.names[position], "captured", graph.lines[position], outputs)

    launches.capture_observers.append(begin)
    launches.replay_observers.append(tell)
    try:
        yield
    finally:
        launches.replay_observers.remove(tell)
        launches.capture_observers.remove(begin)


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.layout == torch.strided else []
    return [tensor for item in value for tensor in _flat(item)] if isinstance(value, (list, tuple)) else []
