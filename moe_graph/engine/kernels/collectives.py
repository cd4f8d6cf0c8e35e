"""Collectives of HCCL in a graph: over the process group that the graph names, in the order of the graph's nodes on every rank.

Counts are elements, or rows where they add up to the rows of the tensor: torchair gives rows to the V forms of gather and reduce-scatter.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from moe_graph.engine.dtypes import GeType
from moe_graph.engine.registry import Tensors, kernel
from moe_graph.operators.communication import process_group


@kernel("HcomAllReduce")
def hcom_all_reduce(x: Tensor, *, reduction: str, group: str, fusion: int = 1, fusion_id: int = -1) -> Tensor:
    """GE HcomAllReduce: x reduced over the group."""
    return process_group.all_reduce(x, reduction, process_group.named(group))


@kernel("HcomAllGather")
def hcom_all_gather(x: Tensor, *, rank_size: int, group: str, fusion: int = 0, fusion_id: int = -1) -> Tensor:
    """GE HcomAllGather: x of all ranks along the first dimension; a scalar counts as one row."""
    found = process_group.of_size(group, rank_size, "rank_size")
    rows = x.reshape(1) if not x.dim() else x
    return process_group.all_gather(rows, [len(rows)] * rank_size, found)


@kernel("HcomAllGatherV")
def hcom_all_gather_v(
    x: Tensor, send_count: Tensor, recv_counts: Tensor, recv_displacements: Tensor | None = None, *, group: str
) -> Tensor:
    """GE HcomAllGatherV: x of all ranks along the first dimension, recv_counts[r] of rank r."""
    counts = recv_counts.reshape(-1).tolist()
    _check_displacements("recv_displacements", recv_displacements, counts)
    rows = _rows(x, counts, int(send_count), "send_count")
    return process_group.all_gather(x, rows, process_group.named(group))


@kernel("HcomReduceScatter")
def hcom_reduce_scatter(
    x: Tensor, *, reduction: str, group: str, rank_size: int, fusion: int = 0, fusion_id: int = -1
) -> Tensor:
    """GE HcomReduceScatter: this rank's part, of rank_size equal ones, of x reduced over the group."""
    found = process_group.of_size(group, rank_size, "rank_size")
    if x.shape[0] % rank_size:
        raise ValueError(f"x must have a multiple of rank_size = {rank_size} rows, got {x.shape[0]}")
    return process_group.reduce_scatter(x, reduction, [x.shape[0] // rank_size] * rank_size, found)


@kernel("HcomReduceScatterV")
def hcom_reduce_scatter_v(
    x: Tensor,
    recv_count: Tensor,
    send_counts: Tensor,
    send_displacements: Tensor | None = None,
    *,
    reduction: str,
    group: str,
) -> Tensor:
    """GE HcomReduceScatterV: this rank's send_counts[rank] rows of x reduced over the group."""
    counts = send_counts.reshape(-1).tolist()
    _check_displacements("send_displacements", send_displacements, counts)
    found = process_group.named(group)
    if int(recv_count) != counts[dist.get_rank(found)]:
        raise ValueError(f"recv_count must be send_counts[{dist.get_rank(found)}] of {counts}, got {int(recv_count)}")
    width = 1 if sum(counts) == x.shape[0] else x[:1].numel()
    return process_group.reduce_scatter(x, reduction, [count // width for count in counts], found)


@kernel("HcomAllToAll")
def hcom_all_to_all(x: Tensor, *, group: str) -> Tensor:
    """GE HcomAllToAll: the ranks' equal parts of x, exchanged."""
    found = process_group.named(group)
    size = dist.get_world_size(found)
    if x.shape[0] % size:
        raise ValueError(f"x must have a multiple of the group's {size} ranks in rows, got {x.shape[0]}")
    equal = [x.shape[0] // size] * size
    return process_group.all_to_all(x, equal, equal, found)


@kernel("HcomAllToAllV")
def hcom_all_to_all_v(
    send_data: Tensor,
    send_counts: Tensor,
    send_displacements: Tensor,
    recv_counts: Tensor,
    recv_displacements: Tensor,
    *,
    group: str,
) -> Tensor:
    """GE HcomAllToAllV: send_counts[r] elements to rank r, recv_counts[r] from it; whole rows of send_data."""
    width = send_data.shape[1:].numel()
    counts = [tensor.reshape(-1).tolist() for tensor in (send_counts, recv_counts)]
    for name, displacements, given in (
        ("send_displacements", send_displacements, counts[0]),
        ("recv_displacements", recv_displacements, counts[1]),
    ):
        _check_displacements(name, displacements, given)
        if any(count % max(width, 1) for count in given):
            raise ValueError(f"counts must be whole rows of {width} elements, got {given}")
    send, receive = ([count // max(width, 1) for count in given] for given in counts)
    return process_group.all_to_all(send_data, send, receive, process_group.named(group))


@kernel("HcomBroadcast")
def hcom_broadcast(x: Tensors, *, root_rank: int, group: str, fusion: int = 0, fusion_id: int = -1) -> Tensors:
    """GE HcomBroadcast: the tensors of the group's rank root_rank."""
    found = process_group.named(group)
    return [process_group.broadcast(each, root_rank, found) for each in x]


@kernel("HcomSend")
def hcom_send(x: Tensor, *, group: str, sr_tag: int, dest_rank: int) -> tuple[()]:
    """GE HcomSend: x to the group's rank dest_rank."""
    process_group.send(x, dest_rank, sr_tag, process_group.named(group))
    return ()


@kernel("HcomReceive")
def hcom_receive(*, group: str, sr_tag: int, src_rank: int, shape: list, dtype: GeType) -> Tensor:
    """GE HcomReceive: what the group's rank src_rank sends."""
    return process_group.receive(shape, dtype.torch, src_rank, sr_tag, process_group.named(group))


def _rows(x: Tensor, counts: list[int], own: int, name: str) -> list[int]:
    if own == x.shape[0]:
        return counts
    width = x[:1].numel()
    if own != x.numel() or any(count % width for count in counts):
        raise ValueError(f"{name} must be the {x.shape[0]} rows or {x.numel()} elements of x, got {own}")
    return [count // width for count in counts]


def _check_displacements(name: str, displacements: Tensor | None, counts: list[int]) -> None:
    """They must be the running sum of the counts, or nothing."""
    given = [] if displacements is None else displacements.reshape(-1).tolist()
    if given and given != [sum(counts[:position]) for position in range(len(counts))]:
        raise NotImplementedError(f"{name} must be the running sum of the counts {counts}, got {given}")
