"""The handle of a communication that is under way: what `async_op=True`, isend and irecv return."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

_PLACE_IN_GLOO = re.compile(r"^\[[^\]]*\.(?:cc|h):\d+\] ")


class SimulatedWork(dist.Work):
    """Several works of gloo as one, with NPU tensors as their result.

    `wait`, and the value of `get_future`, raise torch.distributed.DistBackendError if gloo fails: a rank is gone, or time is up.
    """

    def __init__(self, what: str, results: Sequence[Tensor], finish: Sequence[Callable[[], Any]] = ()) -> None:
        super().__init__()
        self._what = what
        self._results = list(results)
        self._finish = list(finish)
        self._parts: list[Any] = []
        self._error: Exception | None = None
        self._future: Any = None
        self._ended = False
        self._lock = threading.Lock()
        self._waiting = threading.Lock()

    def start(self, calls: Sequence[Callable[[], Any]]) -> None:
        """Start gloo's operations. Raises DistBackendError at once where gloo does."""
        try:
            for call in calls:
                self._parts.append(call())
        except RuntimeError as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, dist.DistBackendError):
            return error
        reason = _PLACE_IN_GLOO.sub("", str(error).splitlines()[0]).partition(". This is typically")[0]
        return dist.DistBackendError(
            f"hccl on the simulated device: {self._what} failed, is another rank gone or late? gloo says: {reason}"
        )

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:  # noqa: B008  a timedelta is immutable
        """Block until the results are there. A `timeout` of 0 is the group's own."""
        with (
            self._waiting
        ):  # a send or recv of gloo must be waited for once only: a second wait expects another message
            if not self._ended:
                try:
                    for part in self._parts:
                        part.wait(timeout) if timeout else part.wait()
                    for bring_back in self._finish:
                        bring_back()
                except RuntimeError as error:
                    self._error = self._failure(error)
                    self._error.__cause__ = error
                self._ended = True
        if self._error is not None:
            raise self._error
        return True

    def synchronize(self) -> None:
        """As wait: on the host there is no stream that could wait instead."""
        self.wait()

    def block_current_stream(self) -> None:
        """As wait: launches are finished when they return, so the stream is the caller."""
        self.wait()

    def has_ended(self) -> bool:
        """Is it known to have ended? A send or recv is not, before someone waits for it."""
        return self._ended or (bool(self._parts) and all(_has_ended(part) for part in self._parts))

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
        return self._parts[0]._source_rank()

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
