"""`python -m moe_graph conformance`: walk torchair's declared cases on the simulated device and compare with eager PyTorch."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from moe_graph.foundation import starting

if TYPE_CHECKING:
    from moe_graph.conformance.cases import Case
    from moe_graph.conformance.run import Outcome


def main(argv: Sequence[str]) -> int:
    """Walk and report. Exit code 0 if no case failed, 1 if one did or the simulated device cannot start, 2 if no operator matches."""
    parser = argparse.ArgumentParser(prog="moe-graph conformance", description=__doc__.partition(": ")[2])
    parser.add_argument(
        "--op", metavar="PATTERN", help="only operators with this in their name; * and ? match the whole name"
    )
    parser.add_argument("--json", action="store_true", help="print all outcomes as JSON")
    options = parser.parse_args(argv)
    if not _simulated():
        return 1
    from moe_graph.conformance import report
    from moe_graph.conformance.cases import declared_cases
    from moe_graph.conformance.run import Status

    cases = declared_cases(options.op)
    if not cases:
        parser.error(f"torchair declares no case for an operator like {options.op!r}")
    outcomes = _walk(cases)
    if options.json:
        json.dump(report.as_json(outcomes), sys.stdout, indent=1)
        print()
    else:
        report.show(outcomes, Console(highlight=False))
    return int(any(outcome.status is Status.FAILED for outcome in outcomes))


def _simulated() -> bool:
    simulator = starting.simulator()
    if simulator is None:
        return False
    if not simulator.is_active():
        print("moe_graph: the walk needs the simulated device, which stands aside for CANN", file=sys.stderr)
        return False
    return True


def _walk(cases: list[Case]) -> list[Outcome]:
    from moe_graph.conformance.run import run

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    outcomes = []
    with _quiet() as terminal:
        console = Console(file=terminal)
        with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False, transient=True) as bar:
            task = bar.add_task("", total=len(cases))
            for case in cases:
                bar.update(task, description=str(case))
                outcomes.append(run(case))
                bar.advance(task)
    return outcomes


@contextlib.contextmanager
def _quiet() -> Iterator:
    """Keep off the terminal what torch and torchair print of the cases they refuse, which the report lists; yields the real stderr.

    By file descriptor, for the warnings of C++ too. If the walk itself breaks, the end of what was kept is printed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as log, os.fdopen(os.dup(2), "w", encoding="utf-8") as terminal:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield terminal
        except Exception:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 10_000))
            terminal.write(log.read().decode(errors="replace"))
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in zip((1, 2), kept):
                os.dup2(saved, number)
                os.close(saved)
