"""Start the simulated device in this process: its libraries first, then the real torch_npu on top of them."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
import threading
from pathlib import Path
from typing import TextIO

from moe_graph.foundation import cann, settings, survey
from moe_graph.simulator.runtime import build, library
from moe_graph.simulator.runtime.errors import SimulatorError

SOCS = ("A2", "A3", "950")
MAX_DEVICES = 64
SOC_VARIABLE = "MOE_GRAPH_SIM_SOC"
DEVICES_VARIABLE = "MOE_GRAPH_SIM_DEVICES"
REPORT_VARIABLE = "MOE_GRAPH_SIM_REPORT"
DUMP_VARIABLE = "MOE_GRAPH_SIM_DUMP"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_NO_CANN = (
    "Warning: ASCEND_HOME_PATH environment variable is not set.",
    "Warning : ASCEND_HOME_PATH environment variable is not set.",
)

_lock = threading.RLock()
_stands_aside = False


def start() -> bool:
    """Start the simulated device, unless it runs already. True if it runs, False if it stands aside for a real CANN.

    Raises SimulatorError, in one line, if the environment's choice of product or device count is wrong, or if something is missing:
    the torch_npu wheel, one of its Python requirements, pyelftools or a C compiler.
    """
    global _stands_aside
    with _lock:
        if library.is_loaded() or _stands_aside:
            return library.is_loaded()
        if cann.is_present():
            print("moe_graph: CANN is on this machine, the simulated device stays off", file=sys.stderr)
            _stands_aside = True
            return False
        _give_each_rank_a_device()
        _check_environment()
        wheel = build.wheel_folder()
        from moe_graph.foundation import torch_import  # noqa: F401  torch without its autoload of torch_npu, if it is not there yet

        if "torch_npu" in sys.modules:
            raise SimulatorError("torch_npu is loaded already: start the simulated device before it is imported")
        paths = build.ensure_built()
        libraries = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in paths]
        build.mark_loaded(paths)
        # torchair's extension module is linked against the whole of GE: the stand-in must be there before torchair is imported.
        from moe_graph.simulator.graph_mode import torchair_core

        torchair_core.install()
        _import_torch_npu(wheel)
        _share_cores()
        from moe_graph.simulator.communication import group as communication
        from moe_graph.simulator.eager import install as eager
        from moe_graph.simulator.eager import layer as family
        from moe_graph.simulator.eager import own, profiled, sync_debug, unsafe_data
        from moe_graph.simulator.graph_mode import host_inputs, termination
        from moe_graph.simulator.runtime import captured

        eager.install()
        family.install()
        communication.install()
        library.keep(libraries[0])
        settings.computes_on_host("npu")
        captured.install(libraries[0])
        host_inputs.install()
        own.install()
        profiled.install()
        sync_debug.install()
        unsafe_data.install()
        termination.install()
        _switch_on_by_environment()
        _load_plugins()
        return True


def _load_plugins() -> None:
    from moe_graph.plugins import entry_points

    try:
        entry_points.load()
    except entry_points.PluginError as error:
        raise SimulatorError(str(error)) from error


def _switch_on_by_environment() -> None:
    """Fault injection, dumps of graphs, a survey and the report at exit; nothing is imported for them unless the environment asks."""
    if any(name.startswith("MOE_GRAPH_SIM_FAULT_") for name in os.environ):
        from moe_graph.simulator import faults

        faults.from_environment()
    if os.environ.get(DUMP_VARIABLE):
        from moe_graph.simulator.graph_mode import dump

        dump.into(os.environ[DUMP_VARIABLE])
    if survey.is_on():
        from moe_graph.simulator import surveyed

        surveyed.begin()
    if os.environ.get(REPORT_VARIABLE, "0") not in ("", "0"):
        from moe_graph.simulator import report

        report.at_exit()


def _give_each_rank_a_device() -> None:
    """In a worker of torchrun, which `moe-graph run` has not started: as many devices as torchrun has workers on this machine."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    if ranks.isdigit() and not os.environ.get(DEVICES_VARIABLE):
        os.environ[DEVICES_VARIABLE] = str(max(1, min(int(ranks), MAX_DEVICES)))


def _check_environment() -> None:
    chosen = os.environ.get(SOC_VARIABLE) or "A2"
    if chosen not in SOCS:
        raise SimulatorError(f"{SOC_VARIABLE} must be one of {', '.join(SOCS)}, got {chosen!r}")
    count = os.environ.get(DEVICES_VARIABLE) or "1"
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MAX_DEVICES):
        raise SimulatorError(f"{DEVICES_VARIABLE} must be a number from 1 to {MAX_DEVICES}, got {count!r}")


def _share_cores() -> None:
    """With several devices a process takes its part of the cores, unless the environment says how many threads: processes of several
    threads each, more than there are cores, wait for one another in every operator. torchrun says so, too."""
    devices = int(os.environ.get(DEVICES_VARIABLE) or "1")
    if devices > 1 and not any(os.environ.get(name) for name in THREAD_VARIABLES):
        import torch

        torch.set_num_threads(max(1, min(torch.get_num_threads(), len(os.sched_getaffinity(0)) // devices)))


def _import_torch_npu(wheel) -> None:
    from moe_graph.simulator.runtime import native

    try:
        with native.task_queue_off(), contextlib.redirect_stdout(_WithoutLine(sys.stdout, _NO_CANN)):
            import torch_npu  # noqa: F401
    except ModuleNotFoundError as error:
        raise SimulatorError(
            f"torch_npu needs the package {error.name}, which is missing: pip install {error.name}"
        ) from error
    except (ImportError, OSError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SimulatorError(f"torch_npu at {wheel} does not load on the simulated device: {line}") from error


class _WithoutLine(io.TextIOBase):
    """Standard output, less one line: torch_npu prints on import that CANN's folder is not set, which is what one simulates for."""

    def __init__(self, stream: TextIO, lines: tuple[str, ...]) -> None:
        self._stream = stream
        self._lines = lines
        self._dropped = False

    def write(self, text: str) -> int:
        if text in self._lines:
            self._dropped = True
        elif self._dropped and text == "\n":
            self._dropped = False
        else:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def is_active() -> bool:
    """Does the simulated device run in this process?"""
    return library.is_loaded()


def soc() -> str | None:
    """The simulated product ("A2", "A3" or "950"), or None if the simulated device does not run."""
    return (os.environ.get(SOC_VARIABLE) or "A2") if is_active() else None


def start_in_children() -> None:
    """Let Python processes started from now on, with this process's environment, run on the simulated device too.

    It starts in them when they import torch: see inherit/sitecustomize.py. Python's own switches that ignore the environment or
    the site (-E, -I, -S) switch it off.
    """
    folder = str(Path(__file__).parent / "inherit")
    before = os.environ.get("PYTHONPATH", "")
    if folder not in before.split(os.pathsep):
        os.environ["PYTHONPATH"] = folder + os.pathsep + before if before else folder
