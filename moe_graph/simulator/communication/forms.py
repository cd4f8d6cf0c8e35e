"""The collectives by every form that torch.distributed.ProcessGroup takes.

With options, or with the tensor, the root, the reduction and the timeout by themselves, by position or by name.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions

from moe_graph.simulator.communication.collectives import Collectives
from moe_graph.simulator.communication.operands import as_list, reduction
from moe_graph.simulator.communication.work import SimulatedWork


def _options(kind: type, given: Any, root: Any = None, timeout: timedelta | None = None, op: Any = None) -> Any:
    """`given`: options, or the one of root, reduction and timeout that stands in their place; None."""
    if isinstance(given, timedelta):
        given, timeout = None, given
    elif isinstance(given, int) and not isinstance(given, bool):
        given, root = None, given
    if given is None or isinstance(given, (dist.ReduceOp, dist.ReduceOp.RedOpType)):
        op = given if op is None else op
        given = reduction(op, kind) if hasattr(kind, "reduceOp") else kind()
    if root is not None:
        given.rootRank = root
    if timeout is not None:
        given.timeout = timeout
    return given


def _one(name: str, *values: Any) -> Any:
    """The value that is given. Raises TypeError unless it is one."""
    given = [value for value in values if value is not None]
    if len(given) != 1:
        raise TypeError(f"{name} must be given once, got {len(given)} values for it")
    return given[0]


class Forms(Collectives):
    """What `Collectives` does, by torch's names."""

    def allreduce(
        self, tensors: Any = None, opts: Any = None, timeout: Any = None, *, tensor: Any = None, op: Any = None
    ) -> SimulatedWork:
        opts = _options(dist.AllreduceOptions, opts, None, timeout, op)
        return super().allreduce(_one("tensors", tensors, tensor), opts)

    def broadcast(
        self, tensors: Any = None, opts: Any = None, timeout: Any = None, *, tensor: Any = None, root: int | None = None
    ) -> SimulatedWork:
        opts = _options(dist.BroadcastOptions, opts, root, timeout)
        return super().broadcast(_one("tensors", tensors, tensor), opts)

    def reduce(
        self,
        tensors: Any = None,
        opts: Any = None,
        op: Any = None,
        timeout: Any = None,
        *,
        tensor: Any = None,
        root: int | None = None,
    ) -> SimulatedWork:
        opts = _options(dist.ReduceOptions, opts, root, timeout, op)
        return super().reduce(_one("tensors", tensors, tensor), opts)

    def allgather(
        self,
        output_tensors: Any = None,
        input_tensors: Any = None,
        opts: Any = None,
        *,
        input_tensor: Any = None,
        timeout: Any = None,
    ) -> SimulatedWork:
        opts = _options(AllgatherOptions, opts, None, timeout)
        return super().allgather(output_tensors, _one("input_tensors", input_tensors, input_tensor), opts)

    def gather(
        self,
        output_tensors: Any = None,
        input_tensors: Any = None,
        opts: Any = None,
        timeout: Any = None,
        *,
        input_tensor: Any = None,
        root: int | None = None,
    ) -> SimulatedWork:
        opts = _options(dist.GatherOptions, opts, root, timeout)
        given = _one("input_tensors", input_tensors, input_tensor)
        gathered = output_tensors or []
        if gathered and isinstance(gathered[0], Tensor):
            gathered = [gathered]
        return super().gather(gathered, as_list(given), opts)

    def scatter(
        self,
        output_tensors: Any = None,
        input_tensors: Any = None,
        opts: Any = None,
        timeout: Any = None,
        *,
        output_tensor: Any = None,
        root: int | None = None,
    ) -> SimulatedWork:
        opts = _options(dist.ScatterOptions, opts, root, timeout)
        parts = input_tensors or []
        if parts and isinstance(parts[0], Tensor):
            parts = [parts]
        return super().scatter(as_list(_one("output_tensors", output_tensors, output_tensor)), parts, opts)

    def reduce_scatter(
        self,
        output_tensors: Any = None,
        input_tensors: Any = None,
        opts: Any = None,
        timeout: Any = None,
        *,
        output: Any = None,
        input: Any = None,
        op: Any = None,
    ) -> SimulatedWork:
        opts = _options(dist.ReduceScatterOptions, opts, None, timeout, op)
        given = _one("input_tensors", input_tensors, input)
        return super().reduce_scatter(_one("output_tensors", output_tensors, output), given, opts)

    def alltoall(self, output_tensors: Any, input_tensors: Any, opts: Any = None) -> SimulatedWork:
        return super().alltoall(output_tensors, input_tensors, _options(dist.AllToAllOptions, opts))

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Any,
        input_split_sizes: Any,
        opts: Any = None,
        timeout: Any = None,
    ) -> SimulatedWork:
        opts = _options(dist.AllToAllOptions, opts, None, timeout)
        return super().all_to_all_single(output, input, output_split_sizes, input_split_sizes, opts)

    alltoall_base = all_to_all_single
