"""Where a collective is called: the operator that communicates, the node of the graph, the line of the user's program."""

from __future__ import annotations

import contextlib
import functools
import importlib
import pkgutil
import sys
import threading
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import NamedTuple

from torch import Tensor

from moe_graph.engine import evaluator
from moe_graph.operators import communication
from moe_graph.operators.declaration import Operator
from moe_graph.simulator.runtime import launches

_replaying = threading.local()
_EXECUTES = evaluator._execute.__code__  # the engine's frame that runs one node


class Place(NamedTuple):
    """`operator`: one of torch_npu's that communicates ("npu_moe_distribute_dispatch_v2(bfloat16)"), or "".
    `line`: 'file:line in function'."""

    operator: str
    line: str


def here() -> Place:
    """Where this thread calls."""
    operator, node = "", ""
    operators = _operators()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not operator and frame.f_code in operators:
            operator = operators[frame.f_code] + _first_dtype(frame)
        if frame.f_code is _EXECUTES:
            node = str(frame.f_locals["node"])
            break
        frame = frame.f_back
    line = launches.user_line()
    if line == launches.NO_LINE:
        line = f"{line}, while the main thread is at {main_line()}"
    recorded: Place | None = getattr(_replaying, "place", None)
    if recorded is not None:
        return Place(operator or recorded.operator, f"{recorded.line}, in a replay at {line}")
    return Place(operator, f"{node}, called at {line}" if node else line)


@contextlib.contextmanager
def replayed(place: Place) -> Iterator[None]:
    """Inside the block, this thread does what a capture has recorded there."""
    before = getattr(_replaying, "place", None)
    _replaying.place = place
    try:
        yield
    finally:
        _replaying.place = before


def main_line() -> str:
    """Where the main thread is just now."""
    return launches.user_line(sys._current_frames().get(threading.main_thread().ident or 0))


def _first_dtype(frame: FrameType) -> str:
    """ "(bfloat16)", the dtype of an operator's first argument: inside, what travels may be a wider one on all ranks."""
    first = frame.f_locals.get(frame.f_code.co_varnames[0])
    return f"({str(first.dtype).removeprefix('torch.')})" if isinstance(first, Tensor) else ""


@functools.cache
def _operators() -> dict[CodeType, str]:
    """The code of each communicating operator's reference, eager or in a graph: its name."""
    names = {}
    for found in pkgutil.iter_modules(communication.__path__, communication.__name__ + "."):
        for value in vars(importlib.import_module(found.name)).values():
            if isinstance(value, Operator):
                names[value.reference.__code__] = value.name
    return names
