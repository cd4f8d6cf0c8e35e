"""A report of what a program did on the simulated device, for what it would do on a real one.

Which operators it used and how often, which it asked for in vain, the graphs that it captured and how often each was replayed, and the
lines of the program that copied between host and device or made the host wait: there a real NPU runs dry. `record()` for a part of a
program; `python -m moe_graph run --report`, or MOE_GRAPH_SIM_REPORT=1, for all of it, shown on stderr at exit, by each process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import io
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from moe_graph.foundation import lines
from moe_graph.simulator.runtime import captured, launches
from moe_graph.simulator.runtime.calls import kernel_calls
from moe_graph.simulator.runtime.library import runtime


class Record:
    """What was seen between start and end; `missing` is complete at the end, the other counters grow while the recording is on.

    Attributes:
        operators: name with overload -> launches on NPU tensors
        communications: operation -> how often
        missing: function of CANN that is not modelled, or operator that nothing serves -> how often it was asked for
        copies: (line, direction, why) -> times
        copied: (line, direction, why) -> bytes
        synchronisations: (line, why) -> how often the host waited for the device there, by a copy too
        captures: (line, launches of one replay) -> graphs captured there
        replays: (line, launches of one replay) -> replays of those graphs
        recaptures: (graph of torchair, why) -> how often it was captured again; complete at the end
    """

    def __init__(self) -> None:
        self.operators: Counter[str] = Counter()
        self.communications: Counter[str] = Counter()
        self.copies: Counter[tuple[str, str, str]] = Counter()
        self.copied: Counter[tuple[str, str, str]] = Counter()
        self.synchronisations: Counter[tuple[str, str]] = Counter()
        self.captures: Counter[tuple[str, int]] = Counter()
        self.replays: Counter[tuple[str, int]] = Counter()
        self.recaptures: Counter[tuple[str, str]] = Counter()
        self._captured_at: dict[int, tuple[str, int]] = {}
        self._recaptured_before = _recaptured()
        self._lock = threading.Lock()
        self.missing: Counter[str] = Counter()
        self._missing_before, self._native_before = _missing(), _native()

    def end(self) -> None:
        """Take over what is counted elsewhere: functions that are missing, launches that the C runtime has executed itself."""
        self.missing += _missing() - self._missing_before
        self.recaptures += _recaptured() - self._recaptured_before
        native = _native() - self._native_before
        if native:
            self.operators["npu::npu_moe_re_routing"] += native

    def launch(self, overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
        """An operator is launched."""
        traffic = launches.host_traffic(overload, args, kwargs)
        line = launches.user_line() if traffic is not None else ""
        with self._lock:
            self.operators[overload.name()] += 1
            if traffic is None:
                return
            if traffic.direction:
                self.copies[line, traffic.direction, traffic.why] += 1
                self.copied[line, traffic.direction, traffic.why] += traffic.size
            if traffic.waits:
                self.synchronisations[line, f"{traffic.why} {traffic.direction}".strip()] += 1

    def communicate(self, operation: str) -> None:
        """A collective, a send or a receive is issued."""
        with self._lock:
            self.communications["hccl::" + operation.partition(" to ")[0].partition(" from ")[0]] += 1

    def capture(self, what: str, graph: captured.Graph) -> None:
        """A graph has been captured, or is about to be replayed."""
        with self._lock:
            if what == "capture":
                key = self._captured_at[graph.number] = (launches.user_line(), captured.task_count(graph.number))
                self.captures[key] += 1
            elif graph.number in self._captured_at:
                self.replays[self._captured_at[graph.number]] += 1

    def miss(self, operator: str) -> None:
        """An operator is asked for that nothing serves."""
        with self._lock:
            self.missing[operator] += 1

    def wait(self, why: str) -> None:
        """The host is about to wait for the device."""
        line = launches.user_line()
        with self._lock:
            self.synchronisations[line, why] += 1

    def tables(self) -> list[Any]:
        """rich tables: operators, what is missing, copies, waits. One without rows is left out."""
        tables = []
        rows = [*self.operators.most_common(), *self.communications.most_common()]
        _add(tables, "operators", ("operator", "calls"), [(name, f"{count}") for name, count in rows])
        _add(
            tables,
            "captured graphs (the launches of a capture count once among the operators)",
            ("line", "captures", "launches per replay", "replays"),
            [
                (lines.short(key[0]), f"{count}", f"{key[1]}", f"{self.replays[key]}")
                for key, count in self.captures.items()
            ],
        )
        _add(
            tables,
            "captured again by torchair",
            ("graph", "because", "times"),
            [(*key, f"{count}") for key, count in self.recaptures.most_common()],
        )
        _add(
            tables,
            "asked for, and not simulated",
            ("operator or function of CANN", "calls"),
            [(name, f"{count}") for name, count in self.missing.most_common()],
        )
        _add(
            tables,
            "copies between host and device",
            ("line", "copy", "times", "bytes"),
            [
                (lines.short(line), f"{why} {direction}", f"{count}", f"{self.copied[line, direction, why]:,}")
                for (line, direction, why), count in self.copies.most_common()
            ],
        )
        _add(
            tables,
            "the host waits for the device",
            ("line", "for", "times"),
            [(lines.short(line), why, f"{count}") for (line, why), count in self.synchronisations.most_common()],
        )
        return tables


_NUMBERS = ("calls", "times", "bytes", "captures", "launches per replay", "replays")


def _add(tables: list[Any], title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    tables.append(table)


_REASONS = {
    "recapture_due_to_mutated_input_change_": "the memory of an input that the graph writes to was another",
    "recapture_due_to_global_limit_core_change_": "the limit of cores of the stream was another",
}


def _recaptured() -> Counter[tuple[str, str]]:
    """What torchair counts of its captured graphs: each graph's captures beyond the first, by the reason."""
    from torch._dynamo.utils import counters

    found: Counter[tuple[str, str]] = Counter()
    for name, count in counters["npugraph_ex"].items():
        prefix = next((prefix for prefix in _REASONS if name.startswith(prefix)), None)
        if prefix is not None:
            found[name.removeprefix(prefix), _REASONS[prefix]] += count
    for name, count in counters["npugraph_ex"].items():
        graph = name.removeprefix("captured_")
        if name.startswith("captured_graph_") and count > 1:
            explained = sum(times for (which, _), times in found.items() if which == graph)
            if count - 1 > explained:
                found[graph, "the shapes, or the memory of a parameter, were others"] += count - 1 - explained
    return found


def _native() -> int:
    calls = kernel_calls()
    return calls[-1].number if calls else 0


def _missing() -> Counter[str]:
    library = runtime()
    library.moe_sim_missed.restype = ctypes.c_bool
    library.moe_sim_missed.argtypes = [
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_char_p),
        ctypes.POINTER(ctypes.c_uint64),
    ]
    found: Counter[str] = Counter()
    name, count = ctypes.c_char_p(), ctypes.c_uint64()
    index = 0
    while library.moe_sim_missed(index, ctypes.byref(name), ctypes.byref(count)):
        found[name.value.decode()] = count.value
        index += 1
    return found


@contextlib.contextmanager
def record() -> Iterator[Record]:
    """Record what happens inside, in all threads of the process. Raises SimulatorError if the simulated device does not run."""
    made = Record()
    with _waits_observed(made):
        launches.observe(made.launch)
        launches.missing_observers.append(made.miss)
        launches.communication_observers.append(made.communicate)
        launches.capture_observers.append(made.capture)
        try:
            yield made
        finally:
            launches.leave(made.launch)
            launches.missing_observers.remove(made.miss)
            launches.communication_observers.remove(made.communicate)
            launches.capture_observers.remove(made.capture)
            made.end()


@contextlib.contextmanager
def _waits_observed(made: Record) -> Iterator[None]:
    """torch_npu's functions by which a program waits for a device, a stream or an event, with a note before each call."""
    import torch_npu

    places = [
        (torch_npu._C, "_npu_synchronize", "synchronize of the device"),
        (torch_npu.npu.streams.Stream, "synchronize", "synchronize of a stream"),
        (torch_npu.npu.streams.Event, "synchronize", "synchronize of an event"),
    ]
    originals = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, why), original in zip(places, originals):
        setattr(owner, name, _noted(original, made, why))
    try:
        yield
    finally:
        for (owner, name, _), original in zip(places, originals):
            setattr(owner, name, original)


def _noted(original: Any, made: Record, why: str) -> Any:
    @functools.wraps(original)
    def noted(*args: Any, **kwargs: Any) -> Any:
        made.wait(why)
        return original(*args, **kwargs)

    return noted


_for_good = contextlib.ExitStack()


def at_exit() -> None:
    """Record from now on, and show the tables on stderr when the process ends."""
    made = _for_good.enter_context(record())

    def show() -> None:
        from rich.console import Console

        _for_good.close()
        terminal = os.isatty(2)
        console = Console(file=io.StringIO(), force_terminal=terminal, width=None if terminal else 160)
        rank = f", rank {os.environ['RANK']}" if "RANK" in os.environ else ""
        console.print(f"moe_graph: report of the simulated device, process {os.getpid()}{rank}", highlight=False)
        console.print(*made.tables() or ["nothing was done on it"], sep="\n")
        # In one piece: other ranks write theirs at the same time.
        sys.stderr.write(console.file.getvalue())

    atexit.register(show)
