"""torch_npu's own kernels, called from Python below ours; and its task queue, in which they may wait still."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moe_graph.foundation import compat
from moe_graph.simulator.runtime.library import runtime

_QUEUE = "TASK_QUEUE_ENABLE"


def kernel_below(qualname: str, key: str) -> Callable[..., Any] | None:
    """torch_npu's kernel now in force under a key, to be called after ours is registered over it: (keys, *args, **kwargs).

    Its errors are Python's exceptions: called as it is, a kernel that throws out of a launch comes back without Python's lock, and the
    interpreter aborts (runtime/python.c). None up to torch 2.8, which has no way to ask for it.
    """
    below = compat.kernel_below(qualname, key)
    if below is None:
        return None

    def call(*args: Any, **kwargs: Any) -> Any:
        comes_with_lock = _comes_with_lock()
        before = comes_with_lock(True)
        try:
            return below(*args, **kwargs)
        finally:
            comes_with_lock(before)

    return call


@functools.cache
def _comes_with_lock() -> Callable[[bool], bool]:
    function = runtime().moe_sim_comes_with_lock
    function.argtypes, function.restype = [ctypes.c_bool], ctypes.c_bool
    return function


@contextlib.contextmanager
def task_queue_off() -> Iterator[None]:
    """Import torch_npu inside: its task queue stays off, whatever TASK_QUEUE_ENABLE says now or later.

    A launch on the simulated device is finished when it returns; in the queue it would only finish later than operators that are computed
    at once, and fail later than its cause. torch_npu reads the variable when it launches first, and here it is made to read "0" now; then
    the environment is what it was. A version that cannot be made to: see `may_wait_in_queue`.
    """
    before = os.environ.get(_QUEUE)
    os.environ[_QUEUE] = "0"
    try:
        yield
        _decide()
    finally:
        if before is not None:
            os.environ[_QUEUE] = before
        elif _decide() is not None:
            del os.environ[_QUEUE]


@functools.cache
def may_wait_in_queue() -> Callable[[], bool] | None:
    """Whether a launch of torch_npu's may wait in its task queue still: None if never, else a function that tells for now."""
    decided = _decide()
    if decided is not None:
        return (lambda: True) if decided else None
    on_at_start = _is_asked_for()
    return lambda: on_at_start or _is_asked_for()


def _decide() -> int | None:
    """The mode of the task queue, which torch_npu keeps from now on; None for a version that has no function to ask."""
    torch_npu = sys.modules.get("torch_npu")
    if torch_npu is None:
        return None
    library = ctypes.CDLL(str(Path(str(torch_npu.__file__)).parent / "lib" / "libtorch_npu.so"))
    ask = getattr(library, "_Z23OpApiGetTaskQueueEnablev", None)  # uint32_t OpApiGetTaskQueueEnable()
    return None if ask is None else int(ask())


def _is_asked_for() -> bool:
    return os.environ.get(_QUEUE, "1") != "0"
