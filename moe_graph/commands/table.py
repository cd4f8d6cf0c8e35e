"""The table of commands: `moe-graph COMMAND ...`, or `python -m moe_graph COMMAND ...`.

Each command is a function `main(argv)` of a module, imported when it is run; add it to the table. Nothing here imports torch: a command
that does not need it answers at once, and also where `import torch` fails.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """A command: where its `main(argv)` is, what it does, and whether it needs `import moe_graph`, which imports torch."""

    module: str
    text: str
    registers: bool


COMMANDS = {
    "run": Command("moe_graph.commands.launch", "run a script or module on the simulated device", True),
    "survey": Command(
        "moe_graph.commands.survey", "list in one pass what a program needs and the simulated device lacks", False
    ),
    "doctor": Command("moe_graph.commands.doctor", "look at this machine: what works, and how to fix the rest", False),
    "activate": Command(
        "moe_graph.commands.switch", "start the simulated device in every Python of this environment", False
    ),
    "deactivate": Command("moe_graph.commands.switch", "undo activate", False),
    "env": Command("moe_graph.commands.switch", 'activate for one shell only: eval "$(moe-graph env)"', False),
    "inspect": Command("moe_graph.dumps.inspect", "read graph dumps: summary, table of nodes, pictures", False),
    "diff": Command("moe_graph.dumps.diff_command", "compare two graph dumps, node by node, by structure", False),
    "compare-data": Command(
        "moe_graph.data_dump.command", "compare tensor dumps from an NPU and from here, by operator", True
    ),
    "check": Command("moe_graph.checking.command", "check converters of your own: operator, lowering, numbers", True),
    "new-operator": Command("moe_graph.template.command", "write a package with an operator of your own", False),
    "plan": Command(
        "moe_graph.planning.command",
        "show a full-size model's graph and what it costs, without weights or a device",
        True,
    ),
    "conformance": Command(
        "moe_graph.conformance.command", "run the cases that torchair's converters declare, against eager PyTorch", True
    ),
    "verify": Command(
        "moe_graph.verification.command",
        "compare kernels and graph mode with the references; can write a bug report",
        True,
    ),
    "status": Command(
        "moe_graph.commands.show_status",
        "show which schema, fake, kernels and converter are registered, and by whom",
        True,
    ),
}

CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Without one, the commands are shown."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not argv:
        parser.print_help()
        return 0
    command = parser.parse_args(argv[:1]).command
    if needs_torch(argv):
        before_torch(argv)
        whole()
    function = importlib.import_module(COMMANDS[command].module).main
    if command == "run":
        return function(argv[1:])
    # Three commands share a module: it is told which one is meant.
    return _shown(function, argv if COMMANDS[command].module.endswith(".switch") else argv[1:])


def needs_torch(argv: Sequence[str]) -> bool:
    """Must `import moe_graph` have been done for this? Not for the help of a command, nor for those that only read files."""
    return bool(argv) and argv[0] in COMMANDS and COMMANDS[argv[0]].registers and argv[1:2] not in (["-h"], ["--help"])


def before_torch(argv: Sequence[str]) -> None:
    """What a command does before torch is imported: its module's `before_torch(argv)`. `run` and `plan` have one."""
    if argv[0] in ("run", "plan"):
        importlib.import_module(COMMANDS[argv[0]].module).before_torch(argv[1:])


def whole() -> None:
    """Run the package's `__init__`, which the console script has put off: torch can be imported after it, also without CANN."""
    package = sys.modules["moe_graph"]
    if not hasattr(package, "register"):
        spec = package.__spec__
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(package)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="moe-graph",
        description="Ascend MoE programs on a machine without an NPU: run, look into, compare.",
        epilog="commands:\n" + "\n".join(f"  {name:{width}}{command.text}" for name, command in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"moe_graph {_version()}")
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below; COMMAND --help says more"
    )
    return parser


def _version() -> str:
    from moe_graph.foundation.version import __version__

    return __version__


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
