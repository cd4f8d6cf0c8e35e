"""A surveyed process (`foundation.survey`): what is seen of it beside the operators that are answered by stand-ins.

Functions of CANN that it asks for in vain (they fail as ever: what they would have done is not known), values of stand-ins that the host
reads, and the error that ends it.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
from typing import Any

import torch

from moe_graph.foundation import marks, survey
from moe_graph.simulator.runtime import launches
from moe_graph.simulator.runtime.library import runtime

_kept: list[Any] = []


def begin() -> None:
    """Watch from now on."""
    launches.observe(_read)
    observer = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_missed)
    _kept.append(observer)
    runtime().moe_sim_when_missed(observer)
    atexit.register(_ended)
    print(
        f"moe_graph: survey, process {os.getpid()}: this is no run, what is lacking answers with NaN", file=sys.stderr
    )


def _read(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
    traffic = launches.host_traffic(overload, args, kwargs)
    if traffic is not None and (traffic.direction == "to host" or traffic.waits) and marks.are_marked(*args):
        survey.found(survey.VALUE, overload.name(), traffic.why, launches.user_line())


def _missed(function: bytes) -> None:
    survey.found(survey.FUNCTION, function.decode(), "", launches.user_line())


def _ended() -> None:
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if error is None:
        return
    line = launches.raised_line(error.__traceback__)
    if line:  # else it is a launcher's, whose children say it themselves
        survey.found(survey.ERROR, type(error).__name__, str(error), line)
