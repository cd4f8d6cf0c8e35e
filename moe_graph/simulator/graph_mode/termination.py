"""A signal that ends a process which compiles: torchair's handler cleans up first, which Dynamo refuses in the middle of a compilation.

torchrun ends the other ranks so when one has failed. The refusal's AssertionError would be raised wherever the program is, and be taken for
the failure; here it is one line, and the process ends by the signal.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from moe_graph.foundation import import_hooks

_MODULES = ("torchair.core._backend", "npugraph_ex")  # each installs a handler when it is imported
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int, "FrameType | None"], object]


def install() -> None:
    """Let the handlers that torchair installs end the process in any case. Idempotent."""
    for name in _MODULES:
        import_hooks.around_import(name, _around_import)


@contextlib.contextmanager
def _around_import() -> Iterator[None]:
    yield
    if threading.current_thread() is not threading.main_thread():
        return  # nor does torchair install one there
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler) and getattr(handler, "__module__", None) in _MODULES:
            signal.signal(number, ending(handler))


def ending(handler: Handler) -> Handler:
    """The handler; where it raises, a line on stderr instead, and the signal's own effect."""

    @functools.wraps(handler)
    def end(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except Exception as error:
            name = signal.Signals(number).name
            rank = f"rank {os.environ['RANK']} was" if "RANK" in os.environ else "the process was"
            why = f"torchair's clean-up said: {_first_line(error)}"
            print(
                f"moe_graph: {rank} ended by {name} from outside; look for a rank that failed before ({why})",
                file=sys.stderr,
                flush=True,
            )
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return end


def _first_line(error: BaseException) -> str:
    """Of the error that the others are about."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
