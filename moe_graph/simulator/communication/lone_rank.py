"""One rank of a world without the others: process groups of any size in one process, for tensors that have no values.

Each group checks what it is given as `hccl` does, communicates nothing and leaves the results as they are: fake tensors have a shape and
no values. A tensor with values is refused: what it would hold is known to the other ranks alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FakeProcessGroup, HashStore
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed import distributed_c10d as c10d

from moe_graph.simulator.communication import group
from moe_graph.simulator.communication.operands import check_sendable, whole_numbers
from moe_graph.simulator.communication.work import SimulatedWork
from moe_graph.simulator.runtime import launches

exchange_observers: list[Callable[[dist.ProcessGroup, Tensor, Tensor, bool], None]] = []
"""Called after each AlltoAll of one tensor with the group, the result, what was given, and whether the parts have sizes of their own."""


@contextmanager
def alone(world: int, rank: int) -> Iterator[None]:
    """Inside the block this process is `rank` of `world` for torch.distributed, as torchrun would say it, and no other process is needed.

    Raises ValueError if there is no such rank.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must be at least 0 and below the world's size {world}, got {rank}")
    said = {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 1,
        "GROUP_RANK": rank,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 1,
    }
    before = {name: os.environ.get(name) for name in said}
    rendezvous, plugins = c10d.rendezvous, dist.Backend._plugins
    plugin = plugins["HCCL"]
    os.environ.update({name: str(value) for name, value in said.items()})
    c10d.rendezvous = lambda *args, **kwargs: iter([(HashStore(), rank, world)])
    plugins["HCCL"] = plugin._replace(creator_fn=_create)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        c10d.rendezvous, plugins["HCCL"] = rendezvous, plugin
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _create(options: Any, backend_options: object) -> LoneRank:
    return LoneRank(options, getattr(group._asked, "backends", {"npu": "hccl"}))


class LoneRank(group.SimulatedHccl):
    """A group of `hccl` of which this process is the only member that runs."""

    has_values = False

    def _connect(self, device: str) -> Any:
        return FakeProcessGroup._create_internal(self._rank, self._size, FakeProcessGroup.Options())

    def _set_sequence_number_for_group(self) -> None:
        """Nobody else counts."""

    def _get_sequence_number_for_group(self) -> int:
        return 0

    def set_timeout(self, timeout: Any) -> None:
        """Nobody is waited for."""

    _set_default_timeout = set_timeout

    def _host(self, operation: str, tensors: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
        for tensor in tensors:
            if not isinstance(tensor, FakeTensor):
                raise RuntimeError(
                    f"{operation}: rank {self._rank} of {self._size} runs without the others, so its tensors must be fake; "
                    f"got one with values, {tensor.dtype} {tuple(tensor.shape)}"
                )
            check_sendable(operation, tensor)
        return self._meshes["npu"], list(tensors)

    def _issue(self, work: SimulatedWork, start: Callable[[], Any]) -> SimulatedWork:
        for observe in launches.communication_observers:
            observe(work.call.operation)
        work.start([])
        work.wait()
        self._collect(work)
        return work

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Iterable[int],
        input_split_sizes: Iterable[int],
        opts: Any = None,
    ) -> SimulatedWork:
        received, sent = whole_numbers(output_split_sizes), whole_numbers(input_split_sizes)
        work = super().all_to_all_single(output, input, received, sent, opts)
        for observe in exchange_observers:
            observe(self, output, input, bool(received or sent))
        return work

    alltoall_base = all_to_all_single

    def monitored_barrier(self, timeout: Any = None, wait_all_ranks: bool = False) -> None:
        """Nobody is waited for."""
