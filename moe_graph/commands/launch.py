"""`python -m moe_graph run`: run a script or module as Python itself does, with the simulated device on."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import runpy
import sys
import traceback
import types
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from moe_graph.commands import tracebacks
from moe_graph.foundation.output_path import output_path_or_stdout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moe-graph run",
        description="Run SCRIPT, or with -m a module, with the real torch_npu and torchair on a simulated Ascend device.",
        usage="%(prog)s [-q] [--soc A2|A3|950] [--devices N] [--world N [--rank R] [--tokens WHAT]] [--dump DIR]\n"
        "           [--trace FILE] [--report] [--full-traceback]\n"
        "           (SCRIPT | - | -m MODULE | COMMAND, such as torchrun or pytest) [ARGS ...]",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say on stderr that the device is simulated")
    parser.add_argument("--soc", choices=("A2", "A3", "950"), help="the product (default A2, or MOE_GRAPH_SIM_SOC)")
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="how many devices (default MOE_GRAPH_SIM_DEVICES, else the arguments' --nproc-per-node, else 1)",
    )
    parser.add_argument(
        "--world", type=int, metavar="N", help="run as one rank of N without the others: tensors have shapes, no values"
    )
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="with --world: which rank (default 0)")
    parser.add_argument(
        "--tokens",
        default="uniform",
        metavar="WHAT",
        help="with --world: how tokens go to experts: uniform (default), skewed, or a file",
    )
    parser.add_argument("--dump", metavar="DIR", help="write the graphs that torchair lowers into this folder, as text")
    parser.add_argument(
        "--full-traceback",
        action="store_true",
        help="show the launcher's and the simulated device's frames of an error, too",
    )
    parser.add_argument(
        "--trace",
        type=output_path_or_stdout,
        metavar="FILE",
        help="write a Chrome trace of all graphs that were run; - shows a table on stderr",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="at exit, show on stderr the operators that were used, and the copies and waits that would stall a device",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="run a module, as python -m does")
    parser.add_argument(
        "target",
        nargs=argparse.REMAINDER,
        help="the script (- is standard input), module or installed command, and its arguments",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the target. Its exit code and exceptions are Python's own; 1 if the device cannot start, 2 if there is no script."""
    options = before_torch(argv)
    installed = None if options.module or os.path.exists(options.target[0]) else _installed(options.target[0])
    if not options.module and options.target[0] != "-" and not os.path.exists(options.target[0]) and installed is None:
        print(f"moe_graph: there is no file {options.target[0]!r} to run", file=sys.stderr)
        return 2
    if not _start(options.quiet):
        return 1
    _start_in_children()
    sys.argv = list(options.target)
    if not options.full_traceback:
        tracebacks.fold()
    # torch.distributed imports its launcher itself; that Python executes it a second time then is as with python -m, and harmless.
    warnings.filterwarnings("ignore", r".*found in sys\.modules after import of package", RuntimeWarning)
    with _traced(options.trace), _alone(options):
        if installed is None:
            _run(options)
        else:
            return _exit_code(installed.load()())
    return 0


def before_torch(argv: Sequence[str]) -> argparse.Namespace:
    """The options, said in the environment: where the switch is on, or in a child of such a process, torch's import starts the device."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.target:
        parser.error("a SCRIPT, or -m MODULE, is required")
    if options.world is not None and not 0 <= options.rank < options.world:
        parser.error(f"--rank must be at least 0 and below --world {options.world}, got {options.rank}")
    if options.soc is not None:
        os.environ["MOE_GRAPH_SIM_SOC"] = options.soc
    devices = options.devices if options.devices is not None else _ranks(options.target)
    if devices is not None:
        os.environ["MOE_GRAPH_SIM_DEVICES"] = str(devices)
    if options.dump is not None:
        os.makedirs(options.dump, exist_ok=True)
        os.environ["MOE_GRAPH_SIM_DUMP"] = os.path.abspath(options.dump)
    if options.report:
        os.environ["MOE_GRAPH_SIM_REPORT"] = "1"
    return options


def _installed(name: str) -> importlib.metadata.EntryPoint | None:
    """The console script of this name in this environment, such as torchrun or pytest; None if there is none."""
    found: Any = importlib.metadata.entry_points()
    scripts = found.select(group="console_scripts") if hasattr(found, "select") else found.get("console_scripts", ())
    return next((script for script in scripts if script.name == name), None)


def _exit_code(returned: Any) -> int:
    """What `sys.exit` makes of a console script's result."""
    if returned is None or isinstance(returned, int):
        return returned or 0
    print(returned, file=sys.stderr)
    return 1


def _ranks(target: Sequence[str]) -> int | None:
    """How many processes torchrun is asked to start on this machine; None if it is not said as a number, or the devices are."""
    if os.environ.get("MOE_GRAPH_SIM_DEVICES"):
        return None
    for position, word in enumerate(target):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == "--nproc-per-node":
            value = value if equals else "".join(target[position + 1 : position + 2])
            return int(value) if value.isascii() and value.isdigit() else None
    return None


def _run(options: argparse.Namespace) -> None:
    target = options.target[0]
    if options.module:
        try:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        except ImportError as error:
            if not _is_runpys_own(error):
                raise
            sys.exit(f"moe_graph: {error}")
        return
    # python -m has put the working directory first; a script is found beside its own files instead.
    sys.path[0] = "" if target == "-" else os.path.dirname(os.path.realpath(target))
    if target == "-" or (os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target))):
        _run_stream(target)
    else:
        runpy.run_path(target, run_name="__main__")


def _run_stream(target: str) -> None:
    """Run what comes out of standard input or a pipe. It can be read once, and runpy reads it twice."""
    module = types.ModuleType("__main__")
    if target == "-":
        code = compile(sys.stdin.buffer.read(), "<stdin>", "exec")
    else:
        with open(target, "rb") as stream:
            code = compile(stream.read(), target, "exec")
        module.__file__ = target
    sys.modules["__main__"] = module
    exec(code, vars(module))


def _is_runpys_own(error: ImportError) -> bool:
    """Did the module's start fail, not the module? Python says so in one line: there is no such module, or it is a package."""
    names = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return set(names) <= {__name__, "runpy"}


@contextlib.contextmanager
def _alone(options: argparse.Namespace) -> Iterator[None]:
    """With --world the program is one rank of many."""
    if options.world is None:
        yield
        return
    from moe_graph.planning import one_rank

    with one_rank.alone(options.world, options.rank, options.tokens, options.dump):
        yield


@contextlib.contextmanager
def _traced(destination: str | None) -> Iterator[None]:
    """Write the trace when the target ends, also if it fails."""
    if destination is None:
        yield
        return
    from moe_graph.engine.trace import trace

    with trace(all_threads=True) as record:
        try:
            yield
        finally:
            if destination == "-":
                from rich.console import Console

                Console(stderr=True).print(record.table(), record.table(by_type=True))
            else:
                record.chrome_trace(destination)


def _start_in_children() -> None:
    """Workers of torchrun and the like are Python processes of their own: the device is started in them too."""
    from moe_graph.simulator import device

    if device.is_active():
        device.start_in_children()


def _start(quiet: bool) -> bool:
    """Import starts the device, so it comes after the environment is set. The errors of its start are one line."""
    try:
        from moe_graph import simulator
    except RuntimeError as error:
        if type(error).__name__ != "SimulatorError":
            raise
        print(f"moe_graph: {error}", file=sys.stderr)
        return False
    if simulator.is_active() and not quiet:
        # By the C runtime alone: to ask torch_npu would initialise it, which fixes its settings and forbids to fork.
        from moe_graph.simulator.runtime import library

        count = library.device_count()
        print(
            f"moe_graph: simulated {library.soc_name()} ({simulator.soc()}), {count} device{'s' * (count != 1)}; "
            "results are computed on the CPU, times mean nothing",
            file=sys.stderr,
        )
    return True
