"""Every row of what must never be slower than the plain way, measured in one run and printed as one table.

    python benchmarks/all.py [--quick] [--only SCRIPT ...] [--avx2]

A second column, with --avx2, has the same rows on a CPU that is told to have no more than AVX2. OMP_NUM_THREADS=1 makes the figures
processor times, which a busy machine disturbs least. Figures above their limit are red, and the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from measure import Row
from rich.console import Console
from rich.table import Table

SCRIPTS = (
    "experts_layer",
    "re_routing",
    "un_routing",
    "eager_overhead",
    "capture",
    "decode_step",
    "compile_share",
    "start_of_run",
    "import_time",
)
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def measured(script: str, quick: bool, limited: dict[str, str]) -> list[Row]:
    """The rows of one script, in a process of its own. Raises CalledProcessError, with what it said on stderr, if it fails."""
    command = [sys.executable, str(Path(__file__).parent / f"{script}.py"), "--json", *(["--quick"] if quick else [])]
    found = subprocess.run(command, env={**os.environ, **limited}, capture_output=True, text=True)
    if found.returncode:
        sys.stderr.write(found.stderr)
        raise subprocess.CalledProcessError(found.returncode, command)
    return [Row(**json.loads(line)) for line in found.stdout.splitlines() if line.startswith("{")]


def main() -> int:
    """The table; 1 if a figure is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="these scripts alone")
    parser.add_argument("--avx2", action="store_true", help="all rows on a CPU limited to AVX2, too")
    options = parser.parse_args()
    table = Table("what", "figure", *(["AVX2"] if options.avx2 else []), "limit", "times")
    over = 0
    for script in options.only:
        columns = [measured(script, options.quick, limited) for limited in ({}, AVX2)[: 1 + options.avx2]]
        others = [{row.what: row for row in column} for column in columns[1:]]
        for row in columns[0]:
            same = [column.get(row.what) for column in others]
            over += any(found is not None and found.is_over for found in (row, *same))
            table.add_row(
                row.what, row.figure, *(found.figure if found else "" for found in same), row.asked, row.detail
            )
        table.add_section()
    Console().print(table)
    print(f"{over} of {table.row_count} rows are above their limit")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
