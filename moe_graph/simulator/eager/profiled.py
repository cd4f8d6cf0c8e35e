"""What profilers are told of an operator on NPU tensors: itself, which torch records, and a kernel on its stream.

The operators on CPU tensors that it is computed by are no launches of a device's, and are not recorded. The kernel is one of mspti's
activities (torch.profiler asks for these since torch_npu 2.13), with the times of the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from moe_graph.simulator.eager import record
from moe_graph.simulator.runtime import launches
from moe_graph.simulator.runtime.library import runtime

_HOME = "ASCEND_HOME_PATH"
_KERNEL = 2  # MSPTI_ACTIVITY_KIND_KERNEL
_torch = ctypes.PyDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
# bool at::hasCallbacks() and bool at::isRecordFunctionEnabled(): does anybody record operators, and may they be recorded now?
_has_recorders, _may_be_recorded = _torch._ZN2at12hasCallbacksEv, _torch._ZN2at23isRecordFunctionEnabledEv
_has_recorders.restype = _may_be_recorded.restype = ctypes.c_bool


def install() -> None:
    """Have torch_npu use mspti: it looks once, when a profiler of torch's starts first, for the library's file in CANN's folder."""
    profile = torch.autograd.profiler.profile
    start = profile._start_trace

    def first_start(self: torch.autograd.profiler.profile) -> None:
        profile._start_trace = start
        with _folder_of_cann():
            start(self)

    profile._start_trace = first_start


@contextlib.contextmanager
def _folder_of_cann() -> Iterator[None]:
    before = os.environ.get(_HOME)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lib64" / "libmspti.so"
        file.parent.mkdir()
        file.symlink_to(Path(runtime()._name).with_name(file.name))
        os.environ[_HOME] = folder
        try:
            yield
        finally:
            del os.environ[_HOME]
            if before is not None:
                os.environ[_HOME] = before


def is_recording() -> bool:
    """Is this thread's operator recorded by anybody, a profiler or an observer?"""
    return _has_recorders() and _may_be_recorded()


def computed(
    overload: torch._ops.OpOverload, compute: Callable[[tuple, dict], Any], args: tuple, kwargs: dict[str, Any]
) -> Any:
    """What `compute` gives, while nothing is recorded; only when `is_recording()`."""
    wants_kernels, kernel_ran = _activities()
    torch._C._autograd._enable_record_function(False)
    try:
        start = time.time_ns()
        result = compute(args, kwargs)
        if wants_kernels(_KERNEL) and launches.host_traffic(overload, args, kwargs) is None:
            device, stream = record.stream_of(args, kwargs)
            kernel_ran(f"simulated {overload}".encode(), start, time.time_ns(), device.index, stream)
    finally:
        torch._C._autograd._enable_record_function(True)
    return result


@functools.cache
def _activities() -> tuple[Callable[[int], bool], Callable[..., None]]:
    """Does anybody want such activities? And what takes a kernel's name, start, end, device and stream (runtime/mspti.c)."""
    library = runtime()
    wants, ran = library.msptiActivityIsEnabled, library.moe_sim_kernel_ran
    wants.restype, ran.restype = ctypes.c_bool, None
    ran.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p]
    return wants, ran
