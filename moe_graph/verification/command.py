"""`python -m moe_graph verify`: compare the device's kernel, the graph mode and the fallback, and write a report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from moe_graph.foundation import starting
from moe_graph.foundation.output_path import output_path_or_stdout

if TYPE_CHECKING:
    from moe_graph.verification.run import Outcome


def main(argv: Sequence[str]) -> int:
    """Run the grid and report. Exit code 0 if every call that was made agrees, else 1; 1 too if there is no device to run on."""
    parser = argparse.ArgumentParser(
        prog="moe-graph verify",
        description="On an NPU, or on the simulated device where there is none, run the kernel, graph mode and the fallback over a "
        "grid of shapes, dtypes and modes, and compare them bit by bit with the fallback on the CPU; then the kernels of torch_npu's "
        "other operators against our references, within their dtype's rounding.",
    )
    parser.add_argument(
        "--json",
        type=output_path_or_stdout,
        metavar="FILE",
        help="write a report that can be attached to a bug; - for stdout",
    )
    parser.add_argument("--quick", action="store_true", help="the main modes and two shapes only, no other operators")
    parser.add_argument(
        "--operators",
        default="*",
        metavar="PATTERN",
        help="which of torch_npu's other operators to compare with their references, by name: 'npu_*norm*'; '' none (default all)",
    )
    parser.add_argument(
        "--soc", choices=("A2", "A3", "950"), help="the simulated product (default A2); ignored on an NPU"
    )
    options = parser.parse_args(argv)
    if options.soc is not None:
        os.environ["MOE_GRAPH_SIM_SOC"] = options.soc
    if not starting.has_device("verify"):
        return 1
    from moe_graph.verification import machine, operators, report

    surroundings = machine.describe()
    outcomes = _walk(options.quick, surroundings["device"]["simulated"])
    findings = [] if options.quick else operators.walk(options.operators)
    # With JSON on stdout the table goes to stderr.
    console = Console(highlight=False, stderr=options.json == "-")
    report.show(outcomes, surroundings, console)
    if findings:
        report.show_operators(findings, console)
    if options.json is not None:
        text = json.dumps(report.as_json(outcomes, surroundings, findings), indent=1) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            with open(options.json, "w", encoding="utf-8") as file:
                file.write(text)
    return int(any(outcome.failed for outcome in outcomes) or any(finding.failed for finding in findings))


def _walk(quick: bool, simulated: bool) -> list[Outcome]:
    from moe_graph.verification import grid
    from moe_graph.verification.run import Implementation, run_mode

    modes, shapes = grid.modes(quick), grid.shapes(quick, simulated)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    outcomes: list[Outcome] = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(modes) * len(shapes) * len(Implementation))
        for mode in modes:
            bar.update(task, description=str(mode))
            outcomes += run_mode(mode, shapes, lambda outcome: bar.advance(task))
    return outcomes
