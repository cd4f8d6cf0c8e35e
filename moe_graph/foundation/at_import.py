"""Importing this module answers `python -m moe_graph ...` where that needs no torch.

Python imports the package before it looks at its `__main__`, and the package imports torch, which takes seconds and may fail: the package
imports this module first.
"""

from __future__ import annotations

import importlib
import sys


def _arguments() -> list[str] | None:
    """What follows `python -m moe_graph`; None if this process is something else."""
    # While Python looks for the module to run, argv[0] is "-m"; the module stands in orig_argv (Python 3.10), before the arguments.
    given = sys.argv[1:]
    started = getattr(sys, "orig_argv", [])
    before = started[: len(started) - len(given)]
    return given if sys.argv[:1] == ["-m"] and before[-1:] in (["moe_graph"], ["-mmoe_graph"]) else None


arguments = _arguments()
if arguments is not None:
    # By its name: the table of commands is above this room.
    table = importlib.import_module("moe_graph.commands.table")
    if not table.needs_torch(arguments):
        sys.exit(table.main(arguments))
    table.before_torch(arguments)
