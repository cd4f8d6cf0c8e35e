"""What the ranks of a program are doing, told to each other: a collective that fails can say which rank waits where.

Each process writes its state into the program's store (torch.distributed's), under a key of its own, when it has changed: the collectives
that are under way, the last one, the line of the main thread; how it died, by an uncaught exception, before it ends. A thread looks twice a
second. Nothing of this is needed for a collective to succeed: where the store is gone, with the rank that kept it, states are unknown.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch.distributed as dist

from moe_graph.simulator.communication import place
from moe_graph.simulator.runtime import launches

_PERIOD = 0.5  # seconds between two looks at what has changed
_LAST_WORDS = 3.0  # seconds that a rank waits for those of one that has gone
_SHOWN = 3  # calls under way that are named

_box: BlackBox | None = None
_lock = threading.Lock()
_at_end: list[weakref.WeakMethod] = []


class BlackBox:
    """The states of the ranks of one program: of the processes that share a store."""

    def __init__(self, store: dist.Store, rank: int) -> None:
        self.rank = rank
        self._store = dist.PrefixStore("simulated_hccl_states/", _own_connection(store))
        self._calls: dict[int, Any] = {}  # the works under way, by identity
        self._last = ""
        self._ended = self._error = ""
        self._told = ""
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep_telling, name="simulated hccl states", daemon=True)
        self._thread.start()

    # ---- this rank ----

    def called(self, work: Any) -> None:
        """A work has been launched."""
        with self._lock:
            self._calls = {key: other for key, other in self._calls.items() if not other.has_ended()}
            self._calls[id(work)] = work
            self._last = str(work.call)

    @contextlib.contextmanager
    def during(self, work: Any) -> Iterator[None]:
        """What happens inside is under way."""
        self.called(work)
        try:
            yield
        finally:
            with self._lock:
                self._calls.pop(id(work), None)

    def note(self, words: str) -> None:
        """Say what was wrong, to ranks that wait for this one."""
        self._error = words
        with contextlib.suppress(RuntimeError):
            self.tell()

    def tell(self) -> None:
        """Write this rank's state, if it has changed."""
        with self._lock:
            under_way = [work for work in self._calls.values() if not work.has_ended()]
            state: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "last": self._last}
            state["calls"] = [[str(work.call), work.launched] for work in under_way[:_SHOWN]]
            state["more"] = max(len(under_way) - _SHOWN, 0)
            state["main"] = place.main_line()
            state["ended"], state["error"] = self._ended, self._error
            told = json.dumps(state)
            if told == self._told:
                return
            self._told = told
        self._store.set(str(self.rank), told)

    def end(self, words: str) -> None:
        """This rank's last words; the first are kept."""
        self._ended = self._ended or words
        with contextlib.suppress(RuntimeError):  # the store may be gone; nobody can be told then
            self.tell()

    def close(self) -> None:
        """Say that the program has ended, and stop telling."""
        if not self._closing.is_set():
            self._closing.set()
            self.end("its program has ended")
            self._thread.join(2)

    def _keep_telling(self) -> None:
        while not self._closing.wait(_PERIOD):
            try:
                self.tell()
            except RuntimeError:  # the rank that kept the store is gone
                return

    # ---- all ranks ----

    def states(self, ranks: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The last told state of each of these ranks; one that has told nothing is left out. Empty where the store is gone."""
        found = {}
        try:
            for rank in ranks:
                if self._store.check([str(rank)]):
                    found[rank] = json.loads(self._store.get(str(rank)))
        except RuntimeError:
            return {}
        return found

    def report(self, ranks: Sequence[int], after_loss: bool) -> str:
        """What each of these ranks does, a line each, those that are gone first.

        `after_loss`: a connection was closed; then the last words of a rank are waited for, some seconds.
        """
        with contextlib.suppress(RuntimeError):
            self.tell()
        until = time.monotonic() + _LAST_WORDS
        states = self.states(ranks)
        while after_loss and not any(map(_gone, states.values())) and time.monotonic() < until and states:
            time.sleep(0.1)
            states = self.states(ranks)
        if not states:
            return "  nothing is known of the ranks: the store of the program is gone, with the rank that kept it"
        gone = {rank: _gone(state) for rank, state in states.items()}
        order = sorted(ranks, key=lambda rank: (_weight(gone.get(rank, "")), rank))
        return "\n".join(f"  rank {rank}: {_described(states.get(rank), gone.get(rank, ''))}" for rank in order)


def of(store: dist.Store, rank: int) -> BlackBox:
    """The black box of this process: one for the default group that there is now, over its store or this one."""
    global _box
    world = dist.distributed_c10d
    is_first = world._world.default_pg is None
    with _lock:
        if _box is None or is_first:
            if _box is None:
                atexit.register(_close)
                sys.excepthook = _telling(sys.excepthook)
            elif not _box._closing.is_set():
                _box._closing.set()
            _box = BlackBox(store if is_first else world._get_default_store(), rank)
        return _box


def at_end(end: Callable[[], Any]) -> None:
    """Call this method, if its object is there still, when the program ends."""
    _at_end.append(weakref.WeakMethod(end))


def _close() -> None:
    if _box is not None:
        _box.close()
    for reference in _at_end:
        end = reference()
        if end is not None:
            end()


def _telling(hook: Any) -> Any:
    @functools.wraps(hook)
    def tell_first(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if _box is not None and not issubclass(kind, KeyboardInterrupt):
            lines = str(error).strip().splitlines()
            raised = _line_of(trace)
            words = f"died of {kind.__name__}: {lines[0] if lines else ''}"
            _box.end(words + (f" (raised at {raised})" if raised else ""))
        hook(kind, error, trace)

    return tell_first


def _line_of(trace: TracebackType | None) -> str:
    """The last line of the user's program in a traceback: a frame by itself tells where it is now."""
    found = ""
    for frame, number in traceback.walk_tb(trace):
        code = frame.f_code
        if launches.is_of_the_program(code.co_filename):
            found = f"{code.co_filename}:{number} in {code.co_name}"
    return found


def _own_connection(store: dist.Store) -> dist.Store:
    """One that a wait of the program in the store does not block, where the store has such."""
    try:
        return store.clone()
    except (AttributeError, RuntimeError, NotImplementedError):
        return store


def _gone(state: dict[str, Any]) -> str:
    """How the process of this state has ended; "" if it has not, or that cannot be seen from here."""
    if state["ended"]:
        return str(state["ended"])
    if state["host"] == socket.gethostname() and not _runs(state["pid"]):
        return "was killed, or ended without a word"
    return ""


def _runs(pid: int) -> bool:
    """Is it a process, and no zombie?"""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _weight(gone: str) -> int:
    """Who is named first: one that died of itself, then one that died of the others' death, then who has ended, then the living."""
    if not gone:
        return 3
    if gone.startswith("its program"):
        return 2
    return 1 if "DistBackendError" in gone else 0


def _described(state: dict[str, Any] | None, gone: str) -> str:
    if state is None:
        return "has told nothing: it has not created the group, or its process ended before"
    error = f"; it has {state['error']}" if state["error"] else ""
    last = f"{error}; its last call was {state['last']}" if state["last"] else f"{error}; it has called no collective"
    if gone:
        return gone + last
    calls = [f"is in {text}, for {max(time.time() - since, 0):.0f} s" for text, since in state["calls"]]
    if calls:
        more = f", and in {state['more']} more" if state["more"] else ""
        return "; ".join(calls) + more + f"{error}; its main thread is at {state['main']}"
    return f"is in no collective, its main thread is at {state['main']}{last}"
