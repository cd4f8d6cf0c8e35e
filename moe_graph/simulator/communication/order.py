"""Works that must begin one after another, on every rank in the same order: whoever waits for one moves them on, or a thread does."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

SLICE = 1.0  # seconds after which a wait, which does not see a signal in C++, looks at them
_PATIENCE = 0.001  # seconds that the thread leaves to whoever launched a work, to wait for it


class Order:
    """The collectives of a group, or the messages from one sender."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: deque[Any] = deque()
        self._turn = threading.Lock()  # held by whoever moves the works on
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, work: Any, is_awaited: bool) -> None:
        """`is_awaited`: its caller waits for it at once, so that no thread is needed."""
        self._queue.append(work)
        if is_awaited:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._move_on, name=self._name, daemon=True)
            self._thread.start()
        self._wake.set()

    def reach(self, work: Any, deadline: float) -> bool:
        """Let the works up to this one begin. False if it has not by the deadline (of time.monotonic)."""
        while not work.has_begun():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._turn.acquire(timeout=min(left, SLICE)):
                try:
                    if not self._advance(work, deadline):
                        return False
                finally:
                    self._turn.release()
        return True

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Let the thread end; what waits in a mesh ends when that is closed."""
        self._closed = True
        self._wake.set()

    def join(self) -> None:
        """Wait for the thread, some seconds: Python must not end while it waits in C++."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2)

    def _advance(self, last: Any, deadline: float) -> bool:
        while self._queue and (last is None or not last.has_begun()):
            if not self._queue[0].begin(deadline):
                return False
            self._queue.popleft()
        return True

    def _move_on(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            time.sleep(_PATIENCE)
            while self._queue and not self._closed:
                with self._turn:
                    if not self._advance(None, float("inf")):
                        return
