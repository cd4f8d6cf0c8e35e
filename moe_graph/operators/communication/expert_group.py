"""The process group of expert parallelism: found by the name that the distributed operators take, and its AlltoAll of rows.

`group_ep` is HCCL's communicator name, as `group._get_backend(torch.device("npu")).get_hccl_comm_name(rank)` gives it, or
`group.group_name` of a group of any backend (gloo on the CPU).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe_graph.foundation import compat
from moe_graph.operators.checks import Checks
from moe_graph.operators.communication import process_group


@dataclass(frozen=True)
class Peers:
    """The ranks of a group that exchange rows.

    members  their ranks in the group, in their order; None: all of it
    waits    int64 [ranks of the group]: the microseconds that this rank has waited for each are added to it; None: not measured
    """

    group: dist.ProcessGroup
    members: tuple[int, ...] | None = None
    waits: Tensor | None = None

    def exchange(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """AlltoAll of rows [sum(send), ...] -> [sum(receive), ...]: send[r] of them to member r, receive[r] from it, in their order.

        The rows travel as bytes, since gloo lacks some dtypes, and by a device that the group serves. Raises what torch.distributed
        raises where a rank is lost or late.
        """
        width = rows.shape[1:].numel() * rows.element_size()
        data = rows.contiguous().view(torch.uint8).view(len(rows), width)
        devices = self.group._device_types
        served = [device for device in devices if device.type == data.device.type] or devices
        data = data.to(served[0]) if served[0].type != data.device.type else data
        received = data.new_empty((sum(receive), width))
        if self.members is None and self.waits is None:
            dist.all_to_all_single(received, data, list(receive), list(send), group=self.group)
        else:
            self._exchange_by_pairs(received, data, receive, send)
        return received.to(rows.device).view(-1).view(rows.dtype).view(sum(receive), *rows.shape[1:])

    def _exchange_by_pairs(self, received: Tensor, data: Tensor, receive: Sequence[int], send: Sequence[int]) -> None:
        """A message for each pair of members, which are waited for in their order: one waits for a later one no shorter than for those
        before."""
        members = self.members if self.members is not None else tuple(range(dist.get_world_size(self.group)))
        own, start = dist.get_rank(self.group), time.monotonic()
        pending: dict[int, Any] = {}
        sent: list[Any] = []
        for member, part, into in zip(members, data.split(list(send)), received.split(list(receive))):
            if member == own:
                into.copy_(part)
                continue
            peer = dist.get_global_rank(self.group, member)
            if len(into):
                pending[member] = dist.irecv(into, peer, group=self.group)
            if len(part):
                sent.append(dist.isend(part, peer, group=self.group))
        for member, work in pending.items():
            work.wait()
            if self.waits is not None:
                self.waits[member] += int((time.monotonic() - start) * 1e6)
        for work in sent:
            work.wait()


def find(check: Checks, argument: str, name: str, world_size: int, rank: int) -> dist.ProcessGroup:
    """The group of this name. Raises ValueError if there is none, or if its size or this process' rank in it are others."""
    if not dist.is_available() or not dist.is_initialized():
        check.refuse(argument, "the name of a process group; torch.distributed is not initialized", repr(name))
    found = process_group.search(name)
    if found is None:
        names = [compat.group_name(group) for group in process_group.groups()]
        check.refuse(argument, f"the name of a process group, {names}", repr(name))
    if dist.get_world_size(found) != world_size:
        check.refuse("ep_world_size", f"{dist.get_world_size(found)}, the size of group {name!r}", world_size)
    if dist.get_rank(found) != rank:
        check.refuse("ep_rank_id", f"{dist.get_rank(found)}, this process' rank in group {name!r}", rank)
    return found
