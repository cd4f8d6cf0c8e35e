"""The handle of a communication that is under way: what `async_op=True`, isend and irecv return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from moe_graph.simulator.communication.call import Call
from moe_graph.simulator.communication.order import SLICE, Order

Explain = Callable[["SimulatedWork", Exception], Exception]


class Meeting(Protocol):
    """How the ranks tell each other what they are about to do."""

    def hold(self, deadline: float) -> bool:
        """Wait until all have come. False at the deadline. Raises DistBackendError if they do not call the same, and what gloo raises."""
        ...


class SimulatedWork(dist.Work):
    """Several works of gloo as one, with NPU tensors as their result.

    `wait`, and the value of `get_future`, raise torch.distributed.DistBackendError if gloo fails: a rank is gone, or time is up; or if the
    ranks do not call the same.
    """

    def __init__(
        self,
        call: Call,
        results: Sequence[Tensor],
        finish: Sequence[Callable[[], Any]] = (),
        explain: Explain | None = None,
    ) -> None:
        super().__init__()
        self.call = call
        self.launched = time.time()
        self.is_message = False
        self.came_from: int | None = None
        self.companions: list[SimulatedWork] = []
        self._explain = explain
        self._results = list(results)
        self._finish = list(finish)
        self._calls: list[Callable[[], Any]] = []
        self._parts: list[Any] = []
        self._meeting: Meeting | None = None
        self._order: Order | None = None
        self._begun = False
        self._error: Exception | None = None
        self._future: Any = None
        self._ended = self._fails = False
        self._lock = threading.Lock()
        self._waiting = threading.Lock()

    def start(self, calls: Sequence[Callable[[], Any]]) -> None:
        """Start gloo's operations at once. Raises what gloo raises."""
        self._parts += [call() for call in calls]
        self._begun = True

    def start_after(self, meeting: Meeting, calls: Sequence[Callable[[], Any]], order: Order, awaited: bool) -> None:
        """Start gloo's operations when the ranks have met, in their turn. `awaited`: the caller waits at once."""
        self._meeting, self._calls, self._order = meeting, list(calls), order
        order.add(self, awaited)

    def has_begun(self) -> bool:
        """Have gloo's operations been started, or is it known that they cannot be?"""
        return self._begun

    def begin(self, deadline: float) -> bool:
        """Hold the meeting, and start gloo's operations; an error is kept for `wait`. False if the deadline came first."""
        try:
            if self._meeting is not None and not self._meeting.hold(deadline):
                return False
            self._parts += [call() for call in self._calls]
        except RuntimeError as error:
            self._fail(error)
        self._begun = True
        return True

    def _failure(self, error: Exception) -> Exception:
        self._fails = True
        if self._explain is None or isinstance(error, dist.DistBackendError):
            return error
        return self._explain(self, error)

    def _fail(self, error: Exception) -> None:
        self._error = self._failure(error)
        self._ended = True

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:  # noqa: B008  a timedelta is immutable
        """Block until the results are there. A `timeout` of 0 is the group's own."""
        deadline = time.monotonic() + timeout.total_seconds() if timeout > timedelta(0) else float("inf")
        with (
            self._waiting
        ):  # a send or recv of gloo must be waited for once only: a second wait expects another message
            if self._order is not None and not self._order.reach(self, deadline):
                raise self._failure(TimeoutError(f"the wait's own timeout of {timeout} is over"))
            if not self._ended:
                try:
                    for part in self._parts:
                        _wait_for(part, timeout, in_slices=not self.is_message)
                    for bring_back in self._finish:
                        bring_back()
                except RuntimeError as error:
                    self._fail(error)
                self._ended = True
        if self._error is not None:
            raise self._error
        companions, self.companions = self.companions, []
        for other in companions:
            other.wait(timeout)
        return True

    def finish(self) -> None:
        """Have the results there although nobody waits. Raises the communication's error, unless it has been raised before."""
        if not self._ended:
            self.wait()

    def synchronize(self) -> None:
        """As wait: on the host there is no stream that could wait instead."""
        self.wait()

    def block_current_stream(self) -> None:
        """As wait: launches are finished when they return, so the stream is the caller."""
        self.wait()

    def has_ended(self) -> bool:
        """Is it known to have ended? A send or recv is not, before someone waits for it."""
        return self._ended or (self._begun and not self._fails and all(_has_ended(part) for part in self._parts))

    def is_completed(self) -> bool:
        """Has it ended, well or not? Never blocks."""
        if not self._ended and self.has_ended():
            try:
                self.wait()  # returns at once
            except dist.DistBackendError:
                pass  # kept: `exception` gives it, and every wait raises it
        elif not self._ended:
            self._wait_in_background()  # so that a program that polls a send or recv sees its end
        return self._ended

    def is_success(self) -> bool:
        """Has it ended well?"""
        return self.is_completed() and self._error is None

    def exception(self) -> Exception | None:
        """The error with which a wait has ended, or None."""
        return self._error

    def result(self) -> list[Tensor]:
        """The tensors that receive the results; they hold them after `wait`."""
        return self._results

    def source_rank(self) -> int:
        """The sender that a recv from any rank has got its tensor from."""
        if self.came_from is None:
            raise RuntimeError(f"{self.call.operation} has no source rank, or has none yet")
        return self.came_from

    _source_rank = source_rank

    def get_future(self) -> Any:
        """A future of `result()`. Its callbacks may use the device: they run in a thread that waits for gloo, on the results' device."""
        self._wait_in_background()
        return self._future

    def _wait_in_background(self) -> None:
        with self._lock:
            if self._future is not None:
                return
            devices = list(dict.fromkeys(tensor.device for tensor in self._results if tensor.device.type != "cpu"))
            done = Future(devices=devices) if devices else Future()
            # A Python future keeps an exception as its value, which C++ (DDP) would take for a result; a callback that raises
            # makes a failed future for both.
            self._future = done.then(lambda future: (future.value(), self._results)[1])
        threading.Thread(target=self._complete, args=(done, devices), name="simulated hccl", daemon=True).start()

    def _complete(self, done: Future, devices: Sequence[torch.device]) -> None:
        try:
            if devices:
                torch.npu.set_device(devices[0])
            self.wait()
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)


def _has_ended(part: Any) -> bool:
    return part.has_ended() if isinstance(part, SimulatedWork) else part.is_completed()


def _wait_for(part: Any, timeout: timedelta, in_slices: bool) -> None:
    """gloo's wait, in slices where it has them: a message's has not, its connection is closed after a wait in vain."""
    if timeout > timedelta(0):
        part.wait(timeout)
        return
    while in_slices and not isinstance(part, SimulatedWork) and not part.is_completed():
        try:
            part.wait(timedelta(seconds=SLICE))
            return
        except RuntimeError:
            pass  # the slice is over, and it may have ended since; or it has failed, which the last wait says again
    part.wait()
