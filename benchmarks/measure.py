"""How the benchmarks measure and print: calls in turns, medians of their ratios round by round, a limit beside each figure.

With one thread (OMP_NUM_THREADS=1) the clock is the processor time of this process, which a busy machine disturbs least; with several
it is the wall's, which is what a caller waits for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import moe_graph  # noqa: F401  isort: skip  makes torch importable where a torch_npu wheel lies without CANN
import torch
from rich.console import Console
from rich.table import Table

_BLOCK = 0.002  # seconds of one sample: short enough that most samples fall between two interruptions
_QUICK, _ROUNDS = 7, 31


@dataclass(frozen=True)
class Row:
    """One line of the table. `unit` is "x" for a ratio to the peer. `limit`: what `value` may be, None if nothing is asked."""

    what: str
    value: float
    unit: str = "x"
    limit: float | None = None
    detail: str = ""

    @property
    def is_over(self) -> bool:
        """Is the figure, as it is printed, above its limit?"""
        return self.limit is not None and round(self.value, 2) > self.limit

    @property
    def figure(self) -> str:
        """The figure as rich prints it, red above its limit."""
        text = f"{self.value:.2f} {self.unit}"
        return f"[red]{text}[/red]" if self.is_over else text

    @property
    def asked(self) -> str:
        """The limit, "" if there is none."""
        return "" if self.limit is None else f"{self.limit:g}"


class Times:
    """Seconds of several calls, a sample of each in every round."""

    def __init__(self, samples: dict[str, list[float]]) -> None:
        self._samples = samples

    def median(self, name: str) -> float:
        """The median of a call's samples."""
        return statistics.median(self._samples[name])

    def ratio(self, ours: str, peer: str) -> float:
        """The median of the ratios of two calls, each of one round: what disturbs a round disturbs both."""
        return statistics.median(a / b for a, b in zip(self._samples[ours], self._samples[peer]))

    def more(self, ours: str, peer: str) -> float:
        """The median of the seconds that one call takes more than another in the same round."""
        return statistics.median(a - b for a, b in zip(self._samples[ours], self._samples[peer]))

    def row(self, what: str, ours: str, peer: str, limit: float | None = None) -> Row:
        """A line with the ratio of two calls."""
        return Row(what, self.ratio(ours, peer), "x", limit, f"{shown(self.median(ours))} / {shown(self.median(peer))}")


def clock() -> Callable[[], float]:
    """The clock that is trusted here, as the module says."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def rounds() -> int:
    """How many rounds: few with --quick on the command line."""
    return _QUICK if "--quick" in sys.argv else _ROUNDS


def times(calls: dict[str, Callable[[], object]], count: int | None = None, block: float = _BLOCK) -> Times:
    """Time calls in turns, every other round in the opposite order. What is shorter than `block` seconds is repeated to fill it."""
    now = clock()
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(block / (time.perf_counter() - start + 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(count or rounds()):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            call, repeat = calls[name], range(repeats[name])
            start = now()
            for _ in repeat:
                call()
            samples[name].append((now() - start) / repeats[name])
    return Times(samples)


def shown(seconds: float) -> str:
    """A time with a unit that suits it."""
    unit, size = next(((unit, size) for unit, size in (("s", 1.0), ("ms", 1e-3)) if seconds >= size), ("us", 1e-6))
    return f"{seconds / size:.3g} {unit}"


def table(title: str, rows: Iterable[Row]) -> Table:
    """The lines as a table; what is above its limit is red."""
    made = Table("what", "figure", "limit", "times", title=title, title_justify="left")
    for row in rows:
        made.add_row(row.what, row.figure, row.asked, row.detail)
    return made


def main(title: str, rows: Callable[[], Iterable[Row]]) -> None:
    """The command line of one script: a table, or with --json a line of JSON for each row."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row")
    if parser.parse_args().json:
        for row in rows():
            print(json.dumps(asdict(row)), flush=True)
        return
    Console().print(table(title, rows()))
