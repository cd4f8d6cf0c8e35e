"""What each launch of a captured graph gives, replay by replay: for `moe_graph.trace` and `moe_graph.compare_graph`.

Seen are the launches of operators, and communication; not copies that the C runtime makes, which give no numbers of their own.
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


def observed(observe: Callable[[int, str, str, list[Tensor | None]], None]) -> contextlib.AbstractContextManager[None]:
    """Call `observe` after each launch with the graph's number, the launch, the operator and CPU tensors on the memory of its results."""

    def tell(graph: captured.Graph, launch: str, operator: str, line: str, results: Any) -> None:
        observe(graph.number, launch, operator, _flat(results))

    return captured.watch(tell)


@contextlib.contextmanager
def recorded(trace: Trace, all_threads: bool) -> Iterator[None]:
    """Record every launch of every replay of this thread, or of all threads, in the trace."""
    own = threading.get_ident()
    runs: dict[tuple[int, int], Callable[..., None]] = {}

    def begin(what: str, graph: captured.Graph) -> None:
        if what == "replay" and (all_threads or threading.get_ident() == own):
            runs[threading.get_ident(), graph.number] = trace.begin(f"captured graph {graph.number}")

    def tell(graph: captured.Graph, launch: str, operator: str, line: str, results: Any) -> None:
        record = runs.get((threading.get_ident(), graph.number))
        if record is not None:
            outputs = [(str(at), value) for at, value in enumerate(_flat(results)) if value is not None]
            record(launch, operator, "captured", line, outputs)

    launches.capture_observers.append(begin)
    try:
        with captured.watch(tell):
            yield
    finally:
        launches.capture_observers.remove(begin)


def _flat(value: Any) -> list[Tensor | None]:
    """The tensors of a result, in order; None for what has no values to show."""
    if value is None or isinstance(value, Tensor):
        return [value if value is not None and value.layout == torch.strided else None]
    return [tensor for item in value for tensor in _flat(item)] if isinstance(value, (list, tuple)) else [None]
