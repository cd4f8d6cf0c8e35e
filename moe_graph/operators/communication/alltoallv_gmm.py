"""`npu_alltoallv_gmm` and `npu_gmm_alltoallv`: the experts' first product behind an AlltoAll of tokens, and their last one before it.

    gmm_weight [E, H, N] (trans_gmm_weight: [E, N, H])   send_counts, recv_counts [ranks * E], a rank's experts side by side
    npu_alltoallv_gmm   gmm_x [sum(send_counts), H], by rank and expert -> received, re-routed to expert order, times the experts' weights:
                        (gmm_y [sum(recv_counts), N], mm_y, permute_out: the re-routed rows, if permute_out_flag)
    npu_gmm_alltoallv   gmm_x [sum(send_counts), H] in expert order -> products, back to rank order, sent: (y [sum(recv_counts), N], mm_y)
    mm_x [B, K], mm_weight [K, M]: the shared experts' product mm_y, beside it

The move between rank and expert order is npu_moe_re_routing's. Sources: the operators' pages in the torch_npu documentation; GE
AlltoAllvGroupedMatMul and GroupedMatMulAlltoAllv. Float32 inside, rounded once. Not served: counts as tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from moe_graph.operators.communication import process_group
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.matmul.grouped_matmul import grouped_matmul
from moe_graph.re_routing.index import gather_index


def both_counts(
    send_counts: Sequence[int], recv_counts: Sequence[int], ranks: int, experts: int
) -> tuple[Tensor, Tensor]:
    """The counts as int64 [ranks, experts]."""
    for name, counts in (("send_counts", send_counts), ("recv_counts", recv_counts)):
        if len(counts) != ranks * experts:
            raise ValueError(
                f"{name} must have {ranks * experts} elements, {experts} experts on {ranks} ranks, got {len(counts)}"
            )
        if min(counts, default=0) < 0:
            raise ValueError(f"{name} must be counts >= 0, got {list(counts)}")
    send, receive = (torch.tensor(list(counts), dtype=torch.int64) for counts in (send_counts, recv_counts))
    return send.view(ranks, experts), receive.view(ranks, experts)


def ep_group(hcom: str, ep_world_size: int, given: tuple[Tensor | None, ...]) -> dist.ProcessGroup:
    """The group of this name, of ep_world_size ranks; `given`: the counts as tensors, which are not served."""
    if any(tensor is not None for tensor in given):
        raise NotImplementedError("send_counts_tensor and recv_counts_tensor are not supported, they must be None")
    return process_group.of_size(hcom, ep_world_size, "ep_world_size")


def to_experts(x: Tensor, send: Tensor, receive: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Rows of x [sum(send), ...] by rank and expert, sent -> [sum(receive), ...] in expert order."""
    received = process_group.all_to_all(x, send.sum(1).tolist(), receive.sum(1).tolist(), group)
    return received[gather_index(receive, len(received))]


def to_ranks(products: Tensor, send: Tensor, receive: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Rows [sum(send), ...] in expert order, sent back to their ranks -> [sum(receive), ...]"""
    by_rank = torch.empty_like(products)
    by_rank[gather_index(send, int(send.sum()))] = products
    return process_group.all_to_all(by_rank, send.sum(1).tolist(), receive.sum(1).tolist(), group)


def _experts(x: Tensor, weight: Tensor, sizes: Tensor, transposed: bool) -> Tensor:
    weight = weight.transpose(1, 2) if transposed else weight
    return grouped_matmul([x], [weight], group_list=sizes, group_list_type=1, group_type=0, split_item=3)[0]


def _shared(mm_x: Tensor | None, mm_weight: Tensor | None, transposed: bool) -> Tensor | None:
    if mm_x is None or mm_weight is None:
        return None
    return (mm_x.float() @ (mm_weight.t() if transposed else mm_weight).float()).to(mm_x.dtype)


def alltoallv_gmm(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    hcom: str,
    ep_world_size: int,
    send_counts: Sequence[int],
    recv_counts: Sequence[int],
    *,
    send_counts_tensor: Tensor | None = None,
    recv_counts_tensor: Tensor | None = None,
    mm_x: Tensor | None = None,
    mm_weight: Tensor | None = None,
    trans_gmm_weight: bool = False,
    trans_mm_weight: bool = False,
    permute_out_flag: bool = False,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """gmm_y, mm_y, permute_out; the last two None where they are not asked for."""
    group = ep_group(hcom, ep_world_size, (send_counts_tensor, recv_counts_tensor))
    send, receive = both_counts(send_counts, recv_counts, ep_world_size, len(gmm_weight))
    routed = to_experts(gmm_x, send, receive, group)
    y = _experts(routed, gmm_weight, receive.sum(0), trans_gmm_weight)
    return y, _shared(mm_x, mm_weight, trans_mm_weight), routed if permute_out_flag else None


def gmm_alltoallv(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    hcom: str,
    ep_world_size: int,
    send_counts: Sequence[int],
    recv_counts: Sequence[int],
    *,
    send_counts_tensor: Tensor | None = None,
    recv_counts_tensor: Tensor | None = None,
    mm_x: Tensor | None = None,
    mm_weight: Tensor | None = None,
    trans_gmm_weight: bool = False,
    trans_mm_weight: bool = False,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y and mm_y; the latter None where it is not asked for."""
    group = ep_group(hcom, ep_world_size, (send_counts_tensor, recv_counts_tensor))
    send, receive = both_counts(send_counts, recv_counts, ep_world_size, len(gmm_weight))
    products = _experts(gmm_x, gmm_weight, send.sum(0), trans_gmm_weight)
    return to_ranks(products, send, receive, group), _shared(mm_x, mm_weight, trans_mm_weight)


def _ge_alltoallv_grouped_mat_mul(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    send_counts_tensor: Tensor | None = None,
    recv_counts_tensor: Tensor | None = None,
    mm_x: Tensor | None = None,
    mm_weight: Tensor | None = None,
    *,
    group: str,
    ep_world_size: int,
    send_counts: list,
    recv_counts: list,
    trans_gmm_weight: bool = False,
    trans_mm_weight: bool = False,
    permute_out_flag: bool = False,
    comm_mode: str = "ai_cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    y, mm_y, routed = alltoallv_gmm(
        gmm_x,
        gmm_weight,
        group,
        ep_world_size,
        send_counts,
        recv_counts,
        send_counts_tensor=send_counts_tensor,
        recv_counts_tensor=recv_counts_tensor,
        mm_x=mm_x,
        mm_weight=mm_weight,
        trans_gmm_weight=trans_gmm_weight,
        trans_mm_weight=trans_mm_weight,
        permute_out_flag=permute_out_flag,
    )
    nothing = torch.empty(0)  # torchair describes what FX does not have as float32
    return y, nothing if mm_y is None else mm_y, nothing if routed is None else routed


def _ge_grouped_mat_mul_alltoallv(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    send_counts_tensor: Tensor | None = None,
    recv_counts_tensor: Tensor | None = None,
    mm_x: Tensor | None = None,
    mm_weight: Tensor | None = None,
    *,
    group: str,
    ep_world_size: int,
    send_counts: list,
    recv_counts: list,
    trans_gmm_weight: bool = False,
    trans_mm_weight: bool = False,
    comm_mode: str = "ai_cpu",
) -> tuple[Tensor, Tensor]:
    y, mm_y = gmm_alltoallv(
        gmm_x,
        gmm_weight,
        group,
        ep_world_size,
        send_counts,
        recv_counts,
        send_counts_tensor=send_counts_tensor,
        recv_counts_tensor=recv_counts_tensor,
        mm_x=mm_x,
        mm_weight=mm_weight,
        trans_gmm_weight=trans_gmm_weight,
        trans_mm_weight=trans_mm_weight,
    )
    return y, torch.empty(0) if mm_y is None else mm_y


OPERATOR = of_torch_npu(
    "npu_alltoallv_gmm", alltoallv_gmm, ge=[GeKernel("AlltoAllvGroupedMatMul", _ge_alltoallv_grouped_mat_mul)]
)
BACK_OPERATOR = of_torch_npu(
    "npu_gmm_alltoallv", gmm_alltoallv, ge=[GeKernel("GroupedMatMulAlltoAllv", _ge_grouped_mat_mul_alltoallv)]
)
