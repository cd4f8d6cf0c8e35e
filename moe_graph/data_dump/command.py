"""`python -m moe_graph compare-data A B`: two data dumps of GE's, operator by operator."""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_graph.data_dump.compare import Row

SCHEMA = "moe_graph compare-data 1"
AGREE, DIFFER, UNREADABLE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if what was compared agrees, 1 if an output differs, 2 if a dump cannot be read."""
    parser = argparse.ArgumentParser(
        prog="moe-graph compare-data",
        description="Compare the tensors of two data dumps (config.dump_config of torchair), of a device and of the simulated one, "
        "say: each operator's outputs, in the order of execution.",
        epilog="exit status: 0 what was compared agrees, 1 an output differs, 2 not readable",
    )
    parser.add_argument("first", metavar="A", help="the folder of a dump, of one rank")
    parser.add_argument("second", metavar="B", help="the folder of the other")
    parser.add_argument(
        "--rtol", type=float, help="relative tolerance; unless given, that of the dtype in torch.testing"
    )
    parser.add_argument(
        "--atol", type=float, help="absolute tolerance; unless given, that of the dtype in torch.testing"
    )
    parser.add_argument("--all", action="store_true", help="show the outputs that agree, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    from moe_graph.data_dump import compare  # torch: not for --help
    from moe_graph.data_dump.operator_file import DataDumpError

    try:
        rows = compare.compare(options.first, options.second, options.rtol, options.atol)
    except (DataDumpError, OSError) as error:
        print(error, file=sys.stderr)
        return UNREADABLE
    if options.json:
        print(json.dumps({"schema": SCHEMA, "outputs": [asdict(row) for row in rows]}, indent=2))
    else:
        _show(rows, options.all)
    return DIFFER if any(row.status == compare.DIFFERS for row in rows) else AGREE


def _show(rows: list[Row], whole: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from moe_graph.data_dump import compare

    shown = [row for row in rows if whole or row.status != compare.AGREES]
    table = Table("graph", "run", "operator", "output", "status", "type and shape", "first difference")
    for row in shown:
        name = f"{row.name} ({row.type})" + (f", there {row.other}" if row.other else "")
        output = "" if row.output is None else f"{row.output}"
        cells = (f"{row.graph}", f"{row.run}", name, output, row.status, row.described, row.reason or _difference(row))
        table.add_row(*map(Text, cells), style="red" if row.status == compare.DIFFERS else None)
    if shown:
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    counts = collections.Counter(row.status for row in rows)
    print(f"{len(rows)} outputs: " + ", ".join(f"{count} {status}" for status, count in counts.items()))


def _difference(row: Row) -> str:
    if not row.found:
        return ""
    where = f"at {list(row.found['position'])}: " if "position" in row.found else ""
    largest = f", largest error {row.found['max_abs_error']:.4g}" if "max_abs_error" in row.found else ""
    return f"{where}{row.found['engine']} and {row.found['expected']} ({row.found['count']} elements differ{largest})"
