"""The command line: `python -m moe_graph COMMAND ...`. Each command is a function `main(argv)` of a module; add it to the table."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

# Command -> (module, what it does). The module is imported when its command is run.
COMMANDS = {
    "run": ("moe_graph.commands.launch", "run a script or module on the simulated device"),
    "inspect": ("moe_graph.dumps.inspect", "read graph dumps: summary, table of nodes, pictures"),
    "diff": ("moe_graph.dumps.diff_command", "compare two graph dumps, node by node, by structure"),
    "conformance": (
        "moe_graph.conformance.command",
        "compare torchair's declared cases on the host engine with eager PyTorch",
    ),
    "verify": (
        "moe_graph.verification.command",
        "compare kernel, graph mode and fallback over a grid; a report for bugs",
    ),
    "status": ("moe_graph.commands.show_status", "show what is registered for npu_moe_re_routing, and from whom"),
}

CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="python -m moe_graph",
        description="npu_moe_re_routing in graph mode and everywhere",
        epilog="commands:\n" + "\n".join(f"  {name:{width}}{help_text}" for name, (_, help_text) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below; COMMAND --help says more"
    )
    command = parser.parse_args(argv[:1]).command
    module, _ = COMMANDS[command]
    function = importlib.import_module(module).main
    return function(argv[1:]) if command == "run" else _shown(function, argv[1:])


def _shown(function: Callable[[list[str]], int], argv: list[str]) -> int:
    """The command's exit code. What the terminal's encoding lacks is shown as its code; a reader that has enough (`| head -1`) ends it.

    Not for `run`: the streams are the program's own there.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = function(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    return code


if __name__ == "__main__":
    sys.exit(main())
