"""What graphs did: per node its time, its outputs' shapes and dtypes, and on request their statistics or the tensors themselves.

The nodes are those of GE graphs that the host engine runs, and the launches of captured graphs that the simulated device replays.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe_graph.engine.evaluator import observe
from moe_graph.engine.graph import Node, Plan

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Statistics:
    """Values of a tensor; of a complex tensor its magnitudes.

    Attributes:
        minimum: the smallest finite element, None without any
        maximum: the largest one
        mean: of the finite elements
        nan: how many are NaN
        inf: how many are infinite
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    nan: int
    inf: int

    def __str__(self) -> str:
        if self.mean is None:
            text = "no finite element"
        else:
            text = f"{self.minimum:.4g} .. {self.maximum:.4g}, mean {self.mean:.4g}"
        return text + "".join(f", {count} {name}" for count, name in ((self.nan, "NaN"), (self.inf, "Inf")) if count)


@dataclass(frozen=True)
class OutputRecord:
    """An output of a node.

    Attributes:
        name: its GE name; its number, of a launch
        dtype: of the tensor
        shape: of the tensor
        statistics: where they were asked for
        file: that the tensor was saved to, where that was asked for
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    statistics: Statistics | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"{str(self.dtype).replace('torch.', '')} {list(self.shape)}"


@dataclass(frozen=True)
class NodeRecord:
    """A node that was executed, or a launch of a captured graph.

    Attributes:
        graph: the graph's name; "captured graph 3" is the third capture of the process
        run: which run of the trace it was, from 0
        name: the node's name; "launch 5": counted from 0 among those that Python computes
        type: its GE type; of a launch the operator, "aten.mm.default"
        family: the family of its kernel; "captured" of a launch
        source: the FX node it was lowered from and the line of the user's program, where known; the line that launched at the capture
        start: seconds since the trace began
        duration: seconds
        thread: identifier of the thread that ran it
        outputs: what it computed
    """

    graph: str
    run: int
    name: str
    type: str
    family: str
    source: str
    start: float
    duration: float
    thread: int
    outputs: tuple[OutputRecord, ...]

    def __str__(self) -> str:
        """One line, with the statistics if there are any."""
        outputs = "; ".join(
            str(output) + (f": {output.statistics}" if output.statistics else "") for output in self.outputs
        )
        return (
            f"{self.graph}, run {self.run}, {self.name}, {self.type}{self.source and f' from {self.source}'}: {outputs}"
        )


@dataclass
class Trace:
    """The record of a block. Made by `trace`.

    Attributes:
        statistics: are they asked for?
        save_tensors: the folder for tensors, None if they are not saved
        nodes: in the order of execution
    """

    statistics: bool = False
    save_tensors: Path | None = None
    nodes: list[NodeRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._zero = time.perf_counter()
        self._runs = itertools.count()

    @property
    def first_non_finite(self) -> NodeRecord | None:
        """The first node with a NaN or an infinity in an output, or None. Raises ValueError if statistics were not asked for."""
        if not self.statistics:
            raise ValueError("the trace has no statistics: moe_graph.trace(statistics=True)")
        found = (node for node in self.nodes for one in node.outputs if one.statistics.nan or one.statistics.inf)
        return next(found, None)

    def __call__(self, plan: Plan, values: Mapping[tuple[int, int], Tensor]) -> Callable[[Node, list[Tensor]], None]:
        """An observer of the evaluator."""
        record = self.begin(plan.name)

        def observe_node(node: Node, results: list[Tensor]) -> None:
            names = [described.name for described in node.outputs]
            record(node.name, node.type, node.kernel.family, node.source, list(zip(names, results)))

        return observe_node

    def begin(self, graph: str) -> Callable[[str, str, str, str, Sequence[tuple[str, Tensor]]], None]:
        """A run of a graph begins. What is returned records a node that has just run: name, type, family, source, named outputs."""
        run, thread, positions = next(self._runs), threading.get_ident(), itertools.count()
        mark = time.perf_counter()

        def record(name: str, type_: str, family: str, source: str, results: Sequence[tuple[str, Tensor]]) -> None:
            nonlocal mark
            duration = time.perf_counter() - mark
            position = next(positions)
            outputs = tuple(
                self._output(f"{run:03}_{position:04}_{name}_{at}", output, result)
                for at, (output, result) in enumerate(results)
            )
            start = mark - self._zero
            self.nodes.append(NodeRecord(graph, run, name, type_, family, source, start, duration, thread, outputs))
            mark = time.perf_counter()  # what recording takes is no node's time

        return record

    def _output(self, file_name: str, name: str, value: Tensor) -> OutputRecord:
        path = None
        if self.save_tensors is not None:
            path = str(self.save_tensors / (re.sub(r"[^\w.-]", "_", file_name) + ".pt"))
            torch.save(value.clone(), path)  # a copy: of a view torch would save all it is a view of
        return OutputRecord(
            name, value.dtype, tuple(value.shape), statistics_of(value) if self.statistics else None, path
        )

    def table(self, by_type: bool = False) -> Table:
        """A rich table of the nodes, or with `by_type` of the GE types, the costliest first."""
        from rich.markup import escape
        from rich.table import Table

        total = sum(node.duration for node in self.nodes) or 1.0
        if by_type:
            table = Table("GE type", title=f"{len(self.nodes)} nodes, {total * 1e3:.3f} ms on the host")
            for heading in ("nodes", "ms", "share"):
                table.add_column(heading, justify="right")
            times: dict[str, list[float]] = {}
            for node in self.nodes:
                times.setdefault(node.type, []).append(node.duration)
            for ge_type, spent in sorted(times.items(), key=lambda item: -sum(item[1])):
                table.add_row(ge_type, str(len(spent)), f"{sum(spent) * 1e3:.3f}", f"{sum(spent) / total:.1%}")
            return table
        table = Table("run", "node", "GE type", title=f"{len(self.nodes)} nodes, {total * 1e3:.3f} ms on the host")
        table.add_column("us", justify="right")
        table.add_column("outputs")
        if self.statistics:
            table.add_column("values")
        table.add_column("from")
        for node in self.nodes:
            cells = [f"{node.graph} {node.run}", node.name, node.type, f"{node.duration * 1e6:.1f}"]
            cells.append("\n".join(map(str, node.outputs)))
            if self.statistics:
                cells.append("\n".join(str(output.statistics) for output in node.outputs))
            table.add_row(*map(escape, [*cells, node.source]))
        return table

    def chrome_trace(self, path: str | os.PathLike) -> None:
        """Write the trace in Chrome's trace format, for chrome://tracing and Perfetto: a bar per run, in it a bar per node."""
        events: list[dict] = [
            {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "moe_graph: graphs on the host"}}
        ]
        runs: dict[int, list[NodeRecord]] = {}
        for node in self.nodes:
            runs.setdefault(node.run, []).append(node)
        for run, nodes in runs.items():
            start, end = nodes[0].start, nodes[-1].start + nodes[-1].duration
            events.append(_event(nodes[0].graph, "graph", start, end - start, nodes[0].thread, {"run": run}))
            for node in nodes:
                outputs = [
                    {
                        "name": output.name,
                        "tensor": str(output),
                        **({"statistics": asdict(output.statistics)} if output.statistics else {}),
                        **({"file": output.file} if output.file else {}),
                    }
                    for output in node.outputs
                ]
                arguments = {"node": node.name, "from": node.source, "outputs": outputs}
                events.append(_event(node.type, node.family, node.start, node.duration, node.thread, arguments))
        Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False))


def _event(name: str, category: str, start: float, duration: float, thread: int, arguments: dict) -> dict:
    times = {"ts": start * 1e6, "dur": duration * 1e6}  # microseconds
    return {"ph": "X", "name": name, "cat": category, **times, "pid": 0, "tid": thread, "args": arguments}


def statistics_of(value: Tensor) -> Statistics:
    """Statistics of a tensor of any dtype and shape."""
    wide = value.detach().to(torch.complex128).abs() if value.is_complex() else value.detach().to(torch.float64)
    finite = wide[wide.isfinite()]
    nan, inf = int(wide.isnan().sum()), int(wide.isinf().sum())
    if not finite.numel():
        return Statistics(None, None, None, nan, inf)
    return Statistics(finite.min().item(), finite.max().item(), finite.mean().item(), nan, inf)


@contextlib.contextmanager
def trace(
    *, statistics: bool = False, save_tensors: str | os.PathLike | None = None, all_threads: bool = False
) -> Iterator[Trace]:
    """Record every node that the host engine executes inside the block, and every launch of a captured graph that is replayed.

    Launches are those of operators, and communication; not copies that the simulated device's C runtime makes.

    Args:
        statistics: also the smallest, largest and mean value of each output, and how many are NaN and infinite.
        save_tensors: a folder (made if missing) that each output is saved in, as RUN_POSITION_NODE_OUTPUT.pt for `torch.load`.
        all_threads: also graphs that other threads run. Autograd runs a compiled backward graph in a thread of its own.

    Yields:
        The record, whose `nodes` grow as graphs run: `.table()` shows it, `.chrome_trace(path)` writes it.
    """
    folder = None if save_tensors is None else Path(save_tensors)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    made = Trace(statistics, folder)
    with observe(made, all_threads), _replays(made, all_threads):
        yield made


def _replays(made: Trace, all_threads: bool) -> contextlib.AbstractContextManager[None]:
    simulator = sys.modules.get("moe_graph.simulator")
    if simulator is None or not simulator.is_active():
        return contextlib.nullcontext()
    return importlib.import_module("moe_graph.simulator.replays").recorded(made, all_threads)
