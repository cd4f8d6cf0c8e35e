"""Process groups by the names that operators and graphs carry, and collectives on host memory over them.

A name is HCCL's communicator name, as `group._get_backend(torch.device("npu")).get_hccl_comm_name(rank)` gives it, `group.group_name`, or
what torchair writes into a cached graph and for groups of the CPU: "tag=...;rank_list=0,1".

The tensors here lie on the host; where a group serves NPU tensors alone they go to the device for the time of the call, so that every
collective takes the one way that eager ones take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe_graph.foundation import compat

REDUCTIONS = {"sum": "SUM", "prod": "PRODUCT", "product": "PRODUCT", "min": "MIN", "max": "MAX", "avg": "AVG"}


def named(name: str) -> dist.ProcessGroup:
    """The group of this name. Raises ValueError that lists the groups there are."""
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(f"group {name!r} is not there: torch.distributed is not initialized")
    group = search(name)
    if group is None:
        raise ValueError(f"group must be the name of a process group, {[*map(names, groups())]}, got {name!r}")
    return group


def groups() -> list[dist.ProcessGroup]:
    """All groups of this process."""
    return list(dist.distributed_c10d._world.pg_map)


def search(name: str) -> dist.ProcessGroup | None:
    """The group of this name, None if there is none."""
    return next((group for group in groups() if name in names(group)), None)


def of_size(name: str, size: int, argument: str) -> dist.ProcessGroup:
    """The group of this name. Raises ValueError that names `argument` unless it has this many ranks."""
    group = named(name)
    if dist.get_world_size(group) != size:
        raise ValueError(f"{argument} must be {dist.get_world_size(group)}, the size of group {name!r}, got {size}")
    return group


def names(group: dist.ProcessGroup) -> list[str]:
    """The names a group has, as the module says."""
    ranks = ",".join(map(str, dist.get_process_group_ranks(group)))
    tag = dist.distributed_c10d._get_group_tag(group)
    found = [compat.group_name(group), f"tag={tag};rank_list={ranks}"]
    communicator = communicator_name(group)
    return found if communicator is None else [communicator, *found]


def communicator_name(group: dist.ProcessGroup) -> str | None:
    """HCCL's name of the group's communicator; None for a group that is not on HCCL."""
    if not any(device.type == "npu" for device in group._device_types):
        return None
    backend = group._get_backend(torch.device("npu"))
    asked = getattr(backend, "get_hccl_comm_name", None)
    return None if asked is None else asked(dist.get_rank())


def reduction(name: str) -> Any:
    """torch's reduction of HCCL's name. Raises ValueError for another name."""
    if name not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {name!r}")
    return getattr(dist.ReduceOp, REDUCTIONS[name])


def _device(group: dist.ProcessGroup) -> torch.device:
    devices = {device.type for device in group._device_types}
    return torch.device("cpu") if "cpu" in devices else torch.device("npu")


def on_group(group: dist.ProcessGroup, call: Callable[..., Any], result: Tensor, *inputs: Tensor) -> Tensor:
    """call(result, *inputs) with the tensors where the group takes them; the result, on the host."""
    device = _device(group)
    given = [tensor.contiguous().to(device) for tensor in inputs]
    made = result.contiguous().to(device)
    call(made, *given)
    return made.cpu()


def all_reduce(x: Tensor, how: str, group: dist.ProcessGroup) -> Tensor:
    """A new tensor like x [...]: its reduction over the ranks."""
    return on_group(group, lambda y: dist.all_reduce(y, reduction(how), group=group), x.clone())


def all_gather(x: Tensor, rows: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """x [rows[rank], ...] of all ranks, one behind another: [sum(rows), ...]"""
    if x.shape[0] != rows[dist.get_rank(group)]:
        raise ValueError(f"this rank must send {rows[dist.get_rank(group)]} rows, got {x.shape[0]}")
    result = x.new_empty((sum(rows), *x.shape[1:]))

    def gather(y: Tensor, mine: Tensor) -> None:
        dist.all_gather(list(y.split(list(rows))), mine, group=group)

    return on_group(group, gather, result, x)


def reduce_scatter(x: Tensor, how: str, rows: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """x [sum(rows), ...], reduced over the ranks: this rank's rows of it."""
    if x.shape[0] != sum(rows):
        raise ValueError(f"x must have {sum(rows)} rows for {len(rows)} ranks, got {x.shape[0]}")
    result = x.new_empty((rows[dist.get_rank(group)], *x.shape[1:]))

    def scatter(y: Tensor, whole: Tensor) -> None:
        dist.reduce_scatter(y, list(whole.split(list(rows))), reduction(how), group=group)

    return on_group(group, scatter, result, x)


def all_to_all(x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Rows of x: send[r] to rank r, receive[r] from it -> [sum(receive), ...]"""
    if x.shape[0] != sum(send):
        raise ValueError(f"x must have {sum(send)} rows to send, got {x.shape[0]}")
    result = x.new_empty((sum(receive), *x.shape[1:]))
    return on_group(
        group, lambda y, mine: dist.all_to_all_single(y, mine, list(receive), list(send), group=group), result, x
    )


def broadcast(x: Tensor, root: int, group: dist.ProcessGroup) -> Tensor:
    """x of the group's rank `root`, a new tensor."""
    source = dist.get_global_rank(group, root)
    return on_group(group, lambda y: dist.broadcast(y, source, group=group), x.clone())


def send(x: Tensor, destination: int, tag: int, group: dist.ProcessGroup) -> None:
    """x to the group's rank `destination`."""
    target = dist.get_global_rank(group, destination)
    on_group(group, lambda y: dist.send(y, target, group=group, tag=tag), x)


def receive(shape: Sequence[int], dtype: torch.dtype, source: int, tag: int, group: dist.ProcessGroup) -> Tensor:
    """What the group's rank `source` sends."""
    origin = dist.get_global_rank(group, source)
    return on_group(group, lambda y: dist.recv(y, origin, group=group, tag=tag), torch.empty(tuple(shape), dtype=dtype))
