"""`python -m moe_graph survey`: run a program to its end although operators are missing, and list what it needs and the device lacks."""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from moe_graph.foundation import lines, survey
from moe_graph.foundation.output_path import output_path

REACHED_ITS_END, ENDED_EARLY = 3, 4
_TITLES = {
    survey.OPERATOR: "operators of torch_npu that nothing serves",
    survey.FORM: "operators that are served, and refuse these arguments",
    survey.GE_TYPE: "GE types that have no kernel in the host engine",
    survey.GE_FORM: "GE types whose kernel refuses these inputs or attributes",
    survey.FUNCTION: "functions of CANN that are not modelled (they failed, no stand-in answers for them)",
    survey.VALUE: "values of stand-ins that the host has read: from here on another way may be taken on a device",
    survey.ERROR: "errors that ended a process: what comes after them is not in this list",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moe-graph survey",
        description="Run SCRIPT, or with -m a module, on the simulated device although operators are missing, and list on stderr every "
        "operator, form, GE type and function of CANN that it needs and the device lacks, with the program's lines. What is missing "
        "answers with tensors of torch_npu's fake shapes, filled with NaN. This is no run of the program.",
        epilog=f"exit status: 0 nothing is lacking and the program ended well, {REACHED_ITS_END} something is lacking and the program "
        f"reached its end, {ENDED_EARLY} something is lacking and the program failed before its end; else the program's own",
        usage="%(prog)s [--soc A2|A3|950] [--devices N] [--json FILE] (SCRIPT | -m MODULE | COMMAND, such as torchrun) [ARGS ...]",
    )
    parser.add_argument("--soc", choices=("A2", "A3", "950"), help="the product (default A2, or MOE_GRAPH_SIM_SOC)")
    parser.add_argument("--devices", metavar="N", help="how many devices, as of `run` (default 1, or --nproc-per-node)")
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write the findings into this file, too")
    parser.add_argument("-m", dest="module", action="store_true", help="survey a module, as python -m runs it")
    parser.add_argument("target", nargs=argparse.REMAINDER, help="the script, module or command, and its arguments")
    return parser


def main(argv: Sequence[str]) -> int:
    """Survey the target; the exit code says what was found (`--help`)."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.target:
        parser.error("a SCRIPT, or -m MODULE, is required")
    run = [sys.executable, "-m", "moe_graph", "run", "--quiet"]
    for name in ("soc", "devices"):
        if getattr(options, name) is not None:
            run += [f"--{name}", getattr(options, name)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, survey.VARIABLE: folder}
        status = subprocess.run(
            [*run, *(["-m"] if options.module else []), *options.target], env=environment
        ).returncode
        rows = survey.read(Path(folder))
    if options.json is not None:
        names = ("rank", "kind", "name", "detail", "line")
        Path(options.json).write_text(
            json.dumps([dict(zip(names, row)) for row in rows], indent=1) + "\n", encoding="utf-8"
        )
    _show(rows, status)
    if not any(kind in survey.LACKING for _, kind, *_ in rows):
        return status
    return ENDED_EARLY if status else REACHED_ITS_END


def _show(rows: list[tuple[str, ...]], status: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True, width=None if os.isatty(2) else 160)
    grouped: dict[str, dict[tuple[str, str], list[tuple[str, ...]]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for rank, kind, name, detail, line in rows:
        grouped[kind][name, line].append((rank, detail))
    for kind, title in _TITLES.items():
        if kind not in grouped:
            continue
        table = Table(title=title, title_justify="left")
        for column in ("name", "line", "ranks", "what"):
            table.add_column(column, overflow="fold")
        for (name, line), seen in grouped[kind].items():
            details = list(dict.fromkeys(detail for _, detail in seen))
            more = f" (and {len(details) - 1} others)" if len(details) > 1 else ""
            ranks = ", ".join(sorted({rank for rank, _ in seen}, key=int))
            table.add_row(*map(Text, (name, lines.short(line), ranks, details[0] + more)))
        console.print(table)
    names = {(kind, name) for _, kind, name, *_ in rows if kind in survey.LACKING}
    if names:
        end = "reached its end" if not status else f"failed with status {status}: what comes after is not listed"
        text = f"{len(names)} are lacking; the program {end}. What it has shown is not its result."
    else:
        text = f"nothing is lacking; the program ended with status {status}, and has used no stand-in."
    console.print(f"moe_graph: survey: {text}", highlight=False)
