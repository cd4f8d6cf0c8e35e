"""Communication on a captured stream: recorded, and started and waited for by each replay."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import transforms
from moe_graph.simulator.communication import place
from moe_graph.simulator.communication.work import SimulatedWork
from moe_graph.simulator.runtime import captured, launches
from moe_graph.simulator.runtime.tensors import is_npu

_METHODS = """
    allreduce allreduce_coalesced reduce reduce_scatter_single _reduce_scatter_base reduce_scatter reduce_scatter_single_coalesced
    reduce_scatter_tensor_coalesced reduce_scatter_tensor_uneven broadcast allgather allgather_coalesced all_gather_single
    _allgather_base all_gather_single_coalesced allgather_into_tensor_coalesced all_gather_into_tensor_uneven gather scatter
    all_to_all_single alltoall_base alltoall alltoallvc send recv recv_anysource batch_isend_irecv
""".split()

_checking = threading.local()


def install(group: type) -> None:
    """Let the communication of this class of process groups be recorded where its stream is captured."""
    for name in _METHODS:
        setattr(group, name, _recordable(name, getattr(group, name)))
    group._issue = _checked(group._issue)
    group._together = _together(group._together)


def _recordable(name: str, method: Callable[..., SimulatedWork]) -> Callable[..., SimulatedWork]:
    @functools.wraps(method)
    def communicate(self: Any, *args: Any, **kwargs: Any) -> SimulatedWork:
        if not self.has_values or not captured.is_special() or getattr(_checking, "on", False):
            return method(self, *args, **kwargs)
        tensors = tensors_of(*args, *kwargs.values())
        stream = torch.npu.current_stream(tensors[0].device).npu_stream if tensors else 0
        if captured.state(stream) != captured.CAPTURED:
            return method(self, *args, **kwargs)
        _checking.on = True
        try:
            checked = method(self, *args, **kwargs)  # checks the arguments, and communicates nothing
        finally:
            _checking.on = False
        weak_args, weak_kwargs = _weak((args, kwargs))
        replayed = _Replayed(functools.partial(method, self, *weak_args, **weak_kwargs), checked.call.place)
        captured.record(stream, f"hccl::{name}", replayed.begin, tensors, [])
        work = RecordedWork(f"hccl::{name}", checked, stream, replayed)
        self._collect(work)
        return work

    return communicate


def _checked(issue: Callable[..., SimulatedWork]) -> Callable[..., SimulatedWork]:
    @functools.wraps(issue)
    def only_check(self: Any, work: SimulatedWork, start: Callable[[], Any]) -> SimulatedWork:
        if not getattr(_checking, "on", False):
            return issue(self, work, start)
        for observe in launches.communication_observers:
            observe(work.call.operation)
        return SimulatedWork(work.call, work.result())

    return only_check


def _together(together: Callable[..., SimulatedWork]) -> Callable[..., SimulatedWork]:
    @functools.wraps(together)
    def one(self: Any, operation: str, works: Sequence[SimulatedWork]) -> SimulatedWork:
        if any(isinstance(work, RecordedWork) for work in works):
            return RecordedWorks(works)
        return together(self, operation, works)

    return one


class _Replayed:
    """What the graph keeps of a communication. Not the handle, which keeps the results: their memory may be used again in the graph."""

    def __init__(self, start: Callable[[], SimulatedWork], captured_at: place.Place) -> None:
        self._start, self._captured_at = start, captured_at
        self._work: SimulatedWork | None = None

    def begin(self) -> None:
        with place.replayed(self._captured_at):
            self._work = self._start()

    def wait(self) -> None:
        if self._work is not None:
            self._work.wait()


class RecordedWork(SimulatedWork):
    """The handle of a recorded communication: to wait for it, on the captured stream, is recorded as well."""

    def __init__(self, name: str, checked: SimulatedWork, stream: int, replayed: _Replayed) -> None:
        super().__init__(checked.call, checked.result())
        super().wait()
        self._name, self._stream, self._replayed = name, stream, replayed
        self._is_awaited = False

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:  # noqa: B008  a timedelta is immutable
        if not self._is_awaited and captured.is_special() and captured.state(self._stream) == captured.CAPTURED:
            self._is_awaited = True
            captured.record(self._stream, f"{self._name} (wait)", self._replayed.wait, [], [])
        return super().wait(timeout)  # for companions

    def get_future(self) -> Any:
        """Who waits for the future waits on the captured stream: recorded now, for the wait would be a thread's."""
        self.wait()
        return super().get_future()


class RecordedWorks(SimulatedWork):
    """One handle of several recorded communications."""

    def __init__(self, works: Sequence[SimulatedWork]) -> None:
        super().__init__(works[0].call, [tensor for work in works for tensor in work.result()])
        super().wait()
        self.companions = list(works)


def tensors_of(*values: Any) -> list[Tensor]:
    """The tensors of a device among values, those in lists and tuples too."""
    return [tensor for tensor in transforms.tensors(*values) if is_npu(tensor)]


def _weak(value: Any) -> Any:
    """The arguments with tensors that do not keep their memory."""
    if isinstance(value, dict):
        return {name: _weak(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_weak(item) for item in value)
    if is_npu(value):
        import torch_npu

        return torch_npu._C._weak_ref_tensor(value)
    return value
