"""The process group of expert parallelism: found by the name that the distributed operators take, and its AlltoAll of rows.

`group_ep` is HCCL's communicator name, as `group._get_backend(torch.device("npu")).get_hccl_comm_name(rank)` gives it, or
`group.group_name` of a group of any backend (gloo on the CPU).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from moe_graph.foundation import compat
from moe_graph.operators.checks import Checks
from moe_graph.operators.communication import process_group


def find(check: Checks, argument: str, name: str, world_size: int, rank: int) -> dist.ProcessGroup:
    """The group of this name. Raises ValueError if there is none, or if its size or this process' rank in it are others."""
    if not dist.is_available() or not dist.is_initialized():
        check.refuse(argument, "the name of a process group; torch.distributed is not initialized", repr(name))
    groups = dist.distributed_c10d._world.pg_map
    found = [group for group in groups if name in process_group.names(group)]
    if not found:
        check.refuse(
            argument, f"the name of a process group, {[compat.group_name(group) for group in groups]}", repr(name)
        )
    if dist.get_world_size(found[0]) != world_size:
        check.refuse("ep_world_size", f"{dist.get_world_size(found[0])}, the size of group {name!r}", world_size)
    if dist.get_rank(found[0]) != rank:
        check.refuse("ep_rank_id", f"{dist.get_rank(found[0])}, this process' rank in group {name!r}", rank)
    return found[0]


def exchange(rows: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """AlltoAll of rows [sum(send), ...] -> [sum(receive), ...]: send[r] of them to rank r, receive[r] from it, in the ranks' order.

    The rows travel as bytes, since gloo lacks some dtypes, and by a device that the group serves. Raises what torch.distributed
    raises where a rank is lost or late.
    """
    width = rows.shape[1:].numel() * rows.element_size()
    data = rows.contiguous().view(torch.uint8).view(len(rows), width)
    served = [device for device in group._device_types if device.type == data.device.type] or group._device_types
    data = data.to(served[0]) if served[0].type != data.device.type else data
    received = data.new_empty((sum(receive), width))
    dist.all_to_all_single(received, data, list(receive), list(send), group=group)
    return received.to(rows.device).view(-1).view(rows.dtype).view(sum(receive), *rows.shape[1:])
