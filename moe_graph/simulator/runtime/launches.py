"""Who wants to know of launches: the path that serves operators calls the observers, faults and the report are observers.

Here also stands what a launch means to the host: does it copy between host and device, and must the host wait for the device?
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import typing_extensions
from torch import Tensor

from moe_graph.foundation import compat

Observer = Callable[[torch._ops.OpOverload, tuple, dict], None]

observers: list[Observer] = []
"""Called before an operator is computed for NPU tensors, with the dispatcher's arguments. One that raises fails the launch.

`observe` and `leave` change it: while it is not empty, no launch is made without Python (`eager.plain_calls`)."""

observer_count = ctypes.c_int32(0)
"""The length of `observers`, where C can read it."""

missing_observers: list[Callable[[str], None]] = []
"""Called with the name of an operator that nothing serves, before its error is raised."""

communication_observers: list[Callable[[str], None]] = []
"""Called with the name of each collective or point-to-point operation before it starts."""


capture_observers: list[Callable[[str, Any], None]] = []
"""Called with "capture" when one ends and "replay" when one begins, and the graph (`captured.Graph`)."""


replay_observers: list[Callable[[Any, str, str, str, Any], None]] = []
"""Called after each launch of a replay with the graph (`captured.Graph`), the launch, its operator, its line and its results.

By `captured.watch`, which has the launches of the C runtime told, too."""


def observe(observer: Observer) -> None:
    """Call an observer from now on."""
    observers.append(observer)
    observer_count.value = len(observers)


def leave(observer: Observer) -> None:
    """Do not call an observer any more; one that is not called stays so."""
    if observer in observers:
        observers.remove(observer)
    observer_count.value = len(observers)


@dataclass(frozen=True)
class HostTraffic:
    """What an operator does between host and device. `direction`: "to host", "to device", or "" where only the host waits.

    `why`: the reason in words. `size`: bytes copied. `waits`: must the host wait for the device here?
    """

    direction: str
    why: str
    size: int
    waits: bool


def host_traffic(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> HostTraffic | None:
    """What this launch does between host and device; None if it stays on the device."""
    name = overload._schema.name
    if name == "aten::_local_scalar_dense":
        return HostTraffic("to host", "read of a value", args[0].element_size(), True)
    if name == "aten::copy_":
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        return _copy(args[1], args[0].device.type, non_blocking, args[0])
    if name == "aten::_copy_from":
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        return _copy(args[0], args[1].device.type, non_blocking, args[1])
    if name == "aten::repeat_interleave" and _counts_repeats(overload, args, kwargs):
        return HostTraffic("", "result size depends on the values", 0, True)
    if torch.Tag.data_dependent_output in overload.tags:
        return HostTraffic("to host", "result on the host", 1, True)
    if torch.Tag.dynamic_output_shape in overload.tags and (name != "aten::index" or _has_mask(args[1])):
        return HostTraffic("", "result size depends on the values", 0, True)
    return None


def _copy(source: Tensor, target: str, non_blocking: bool, destination: Tensor) -> HostTraffic | None:
    if (source.device.type == "npu") == (target == "npu"):
        return None
    host = source if target == "npu" else destination
    # A copy to pageable memory waits, whatever is asked. `tensor.to("cpu", non_blocking=True)` makes pinned memory itself.
    waits = not non_blocking or not host.is_pinned()
    size = source.numel() * source.element_size()
    return HostTraffic(
        "to device" if target == "npu" else "to host", "copy" if waits else "copy, non_blocking", size, waits
    )


def _counts_repeats(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Are the repeats a tensor, and the size of the result not given?"""
    given = compat.given_by_name(overload._schema, args, kwargs)
    return isinstance(given.get("repeats"), Tensor) and given.get("output_size") is None


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


_SITE = Path(torch.__file__).parents[1]
_LIBRARIES = (
    f"{Path(__file__).parents[2]}/",
    *(f"{_SITE / name}/" for name in ("torch", "torch_npu", "torchair")),
    typing_extensions.__file__,  # its wrapper stands around functions of torch that are deprecated
)
_STANDARD = sysconfig.get_path("stdlib") + "/"
_ADDED = sysconfig.get_path("purelib") + "/"


def is_of_the_program(file: str) -> bool:
    """Is a source file outside torch, torch_npu, this package and Python's own library?"""
    standard = file.startswith(_STANDARD) and not file.startswith(_ADDED)
    return not file.startswith(_LIBRARIES) and not standard and not file.startswith("<frozen")


NO_LINE = "backward"


def user_line(frame: FrameType | None = None) -> str:
    """'file:line in function' of the innermost frame of the program. A thread of autograd has no such frame: "backward".

    Code that was made while the program ran (by dataclasses, FX, torchair) is not the program's: its caller counts.
    `frame`: where to look from, by default the caller's.
    """
    frame = sys._getframe(1) if frame is None else frame
    while frame is not None:
        file = frame.f_code.co_filename
        # What the user types is "<stdin>", "<string>" or the like, too, in the module __main__.
        made = file.startswith("<") and frame.f_globals.get("__name__") != "__main__"
        if is_of_the_program(file) and not made:
            return f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return NO_LINE


def raised_line(trace: TracebackType | None) -> str:
    """'file:line in function' of the last line of the program in a traceback, or "": a frame by itself tells where it is now."""
    found = ""
    for frame, number in traceback.walk_tb(trace):
        code = frame.f_code
        if is_of_the_program(code.co_filename):
            found = f"{code.co_filename}:{number} in {code.co_name}"
    return found
