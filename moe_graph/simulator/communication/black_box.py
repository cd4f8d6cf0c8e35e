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
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch.distributed as dist

from moe_graph.simulator.communication import place
from moe_graph.simulator.communication.call import Call
from moe_graph.simulator.runtime import launches

_PERIOD = 0.5  # seconds between two looks at what has changed
_LAST_WORDS = 3.0  # seconds that a rank waits for those of one that has gone
_LOOKS_AT_OTHERS = 2  # so many looks, and those of the others are read, in case the store goes
_ENDED = "its program has ended"
_GAVE_UP = "gave up"
_SHOWN = 3  # calls under way that are named

_box: BlackBox | None = None
_lock = threading.Lock()
_at_end: list[weakref.WeakMethod] = []


class Report(NamedTuple):
    """`lines`: what each rank does. `gone`: the ranks that have ended of themselves, `gave_up`: those that have because of others;
    `missing`: those that are not in the collective."""

    lines: str
    gone: list[int]
    gave_up: list[int]
    missing: list[int]


class BlackBox:
    """The states of the ranks of one program: of the processes that share a store."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.rank, self._size = rank, size
        self._store = dist.PrefixStore("simulated_hccl_states/", _own_connection(store))
        self._calls: dict[int, Any] = {}  # the works under way, by identity
        self._last = ""
        self._ended = self._error = ""
        self._known: dict[int, dict[str, Any]] = {}
        self._store_is_gone = False
        self._told = ""
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep_telling, name="simulated hccl states", daemon=True)
        with contextlib.suppress(RuntimeError):
            self.tell()
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
        told = json.dumps(self._state())
        if told != self._told and not self._is_gone():
            self._told = told
            self._store.set(str(self.rank), told)

    def _state(self) -> dict[str, Any]:
        with self._lock:
            under_way = [work for work in self._calls.values() if not work.has_ended()]
        calls = [(work.call, work.launched) for work in under_way[:_SHOWN]]
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "last": self._last,
            "calls": [[c.group, c.kind, c.number, str(c), c.place.line, since] for c, since in calls],
            "more": max(len(under_way) - _SHOWN, 0),
            "main": place.main_line(),
            "ended": self._ended,
            "error": self._error,
        }

    def end(self, words: str) -> None:
        """This rank's last words; the first are kept."""
        self._ended = self._ended or words
        with contextlib.suppress(RuntimeError):  # the store may be gone; nobody can be told then
            self.tell()

    def close(self) -> None:
        """Say that the program has ended, and stop telling."""
        if not self._closing.is_set():
            self._closing.set()
            self.end(_ENDED)
            self._thread.join(2)

    def _keep_telling(self) -> None:
        looks = 0
        while not self._closing.wait(_PERIOD) and not self._is_gone():
            try:
                self.tell()
            except RuntimeError:
                self._store_is_gone = True
            if looks % max(_LOOKS_AT_OTHERS, self._size // 4) == 0:
                self.states(range(self._size))
            looks += 1

    # ---- all ranks ----

    def states(self, ranks: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The last told state of each of these ranks; one that has told nothing is left out.

        Where the store is gone, with the rank that kept it, what was known before that.
        """
        if not self._is_gone():
            try:
                for rank in ranks:
                    if self._store.check([str(rank)]):
                        self._known[rank] = json.loads(self._store.get(str(rank)))
            except RuntimeError:
                self._store_is_gone = True
        self._known[self.rank] = self._state()
        return {rank: self._known[rank] for rank in ranks if rank in self._known}

    def report(self, ranks: Sequence[int], about: Call, after_loss: bool = False) -> Report:
        """What each of these ranks does, those first that are gone, then those that are not in the collective that it is about.

        `after_loss`: a connection was closed; then the last words of a rank are waited for, some seconds.
        """
        with contextlib.suppress(RuntimeError):
            self.tell()
        until = time.monotonic() + _LAST_WORDS
        states = self.states(ranks)
        # A rank that has died shall end before those that tell of it: torchrun takes the first that ends for the cause.
        while after_loss and not any(map(_has_no_process, states.values())) and time.monotonic() < until and states:
            time.sleep(0.1)
            states = self.states(ranks)
        key = [about.group, about.kind, about.number]
        gone = {rank: _gone(state) for rank, state in states.items()}
        inside = [rank for rank, state in states.items() if any(key == told[:3] for told in state["calls"])]

        def weight(rank: int) -> tuple[int, int]:
            words = gone.get(rank, "")
            if words:
                return (4 if words.startswith(_GAVE_UP) else 1 if words == _ENDED else 0), rank
            return (3 if rank in inside else 2), rank

        order = sorted(ranks, key=weight)
        lines = [f"  rank {rank}: {_described(states.get(rank), gone.get(rank, ''))}" for rank in order]
        if self._is_gone():
            lines.append("  the program's store is gone, with the rank that kept it: this is what was told before")
        missing = [rank for rank in ranks if rank not in inside and not gone.get(rank)]
        first = [rank for rank in ranks if gone.get(rank) and not gone[rank].startswith(_GAVE_UP)]
        gave_up = [rank for rank in ranks if gone.get(rank, "").startswith(_GAVE_UP)]
        return Report("\n".join(lines), first, gave_up, missing if inside and about.kind != "message" else [])

    def _is_gone(self) -> bool:
        """Is the store gone? A call to one that is would write C++'s stack between the messages."""
        keeper = self._known.get(0)
        if keeper is not None and _is_kept_by_rank_0(self._store) and _has_no_process(keeper):
            self._store_is_gone = True
        return self._store_is_gone


def of(store: dist.Store, rank: int, size: int) -> BlackBox:
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
            if is_first:
                _box = BlackBox(store, rank, size)
            else:
                _box = BlackBox(world._get_default_store(), dist.get_rank(), dist.get_world_size())
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
            raised = launches.raised_line(trace)
            why = getattr(error, "why", "")
            words = f"{_GAVE_UP}: {why}" if why else f"died of {kind.__name__}: {lines[0] if lines else ''}"
            _box.end(words + (f" (raised at {raised})" if raised else ""))
        hook(kind, error, trace)

    return tell_first


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
    return "was killed, or ended without a word" if _has_no_process(state) else ""


def _has_no_process(state: dict[str, Any]) -> bool:
    return state["host"] == socket.gethostname() and not _runs(state["pid"])


def _is_kept_by_rank_0(store: dist.Store) -> bool:
    """torchrun keeps the store of its ranks itself, in a process of its own."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return isinstance(store, dist.TCPStore) and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _runs(pid: int) -> bool:
    """Is it a process, and no zombie?"""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _described(state: dict[str, Any] | None, gone: str) -> str:
    if state is None:
        return "has told nothing: it has not created the group, or its process ended before"
    error = f"; it has {state['error']}" if state["error"] else ""
    last = f"{error}; its last call was {state['last']}" if state["last"] else f"{error}; it has called no collective"
    if gone:
        return gone + last
    calls = [f"is in {text}, for {max(time.time() - since, 0):.0f} s" for *_, text, _, since in state["calls"]]
    if calls:
        more = f", and in {state['more']} more" if state["more"] else ""
        elsewhere = state["main"] not in [line for *_, line, _ in state["calls"]]
        return "; ".join(calls) + more + error + (f"; its main thread is at {state['main']}" if elsewhere else "")
    return f"is in no collective, its main thread is at {state['main']}{last}"
