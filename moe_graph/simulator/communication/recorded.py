"""Communication on a captured stream: recorded, and started and waited for by each replay."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

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
        method = group.__dict__.get(name)
        if method is not None:
            setattr(group, name, _recordable(name, method))
    group._launch = _checked(group._launch)


def _recordable(name: str, method: Callable[..., SimulatedWork]) -> Callable[..., SimulatedWork]:
    @functools.wraps(method)
    def communicate(self: Any, *args: Any, **kwargs: Any) -> SimulatedWork:
        if not captured.is_special() or getattr(_checking, "on", False):
            return method(self, *args, **kwargs)
        tensors = _tensors((args, kwargs))
        stream = torch.npu.current_stream(tensors[0].device).npu_stream if tensors else 0
        if captured.state(stream) != captured.CAPTURED:
            return method(self, *args, **kwargs)
        _checking.on = True
        try:
            results = method(self, *args, **kwargs).result()  # checks the arguments, and communicates nothing
        finally:
            _checking.on = False
        graph = captured.graph_of(stream)
        weak_args, weak_kwargs = _weak((args, kwargs))
        work = RecordedWork(f"hccl::{name}", results, stream)
        captured.record(stream, work.name, lambda: work.begin(lambda: method(self, *weak_args, **weak_kwargs)))
        for tensor in tensors:
            graph.use(tensor, work.name)
        return work

    return communicate


def _checked(launch: Callable[..., SimulatedWork]) -> Callable[..., SimulatedWork]:
    @functools.wraps(launch)
    def only_check(self: Any, operation: str, results: Sequence[Tensor], calls: Any, finish: Any = ()) -> SimulatedWork:
        if not getattr(_checking, "on", False):
            return launch(self, operation, results, calls, finish)
        for observe in launches.communication_observers:
            observe(operation)
        work = SimulatedWork(operation, results)
        work.wait()
        return work

    return only_check


class RecordedWork(SimulatedWork):
    """The handle of a recorded communication: to wait for it, on the captured stream, is recorded as well."""

    def __init__(self, name: str, results: Sequence[Tensor], stream: int) -> None:
        super().__init__(name, results)
        super().wait()
        self.name = name
        self._stream = stream
        self._replayed: SimulatedWork | None = None

    def begin(self, start: Callable[[], SimulatedWork]) -> None:
        self._replayed = start()

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:  # noqa: B008  a timedelta is immutable
        if captured.is_special() and captured.state(self._stream) == captured.CAPTURED:
            captured.record(self._stream, f"{self.name} (wait)", self._wait_for_replayed)
        return True

    def _wait_for_replayed(self) -> None:
        if self._replayed is not None:
            self._replayed.wait()


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a device among nested arguments."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if is_npu(value) else []


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
