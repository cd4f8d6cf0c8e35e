"""Where the rows of `npu_moe_distribute_dispatch_v2` go, and so where those of `npu_moe_distribute_combine_v2` come from.

    BS tokens of this rank    K experts of each    R ranks, the first R_s of them with shared experts    A rows a rank may receive

A *slot* is an expert on a rank: first one for each rank with a shared expert, then the MoE experts, so that slots are ordered by rank.
Each token goes to its K experts and, where ranks have shared experts, to a copy of each of them. A rank's rows go out ordered by slot,
then token. Experts beyond the MoE experts are special ones, first the zero, then the copy, then the constant experts: their rows are not
sent, npu_moe_distribute_combine_v2 computes them. `elastic_info` [4 + 2 R] says which ranks take part, after others have failed:
whether any has, how many ranks are left, those with shared experts, the MoE experts, then the new rank of each rank or -1, and the rank of
each new rank.

Facts: the operators' pages in op-plugin's documentation, the documents of aclnnMoeDistributeDispatchV2 and V3 (elastic_info), the design
document of the two operators, the kernels in ops-transformer, and torch_npu's fake implementation for shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.quantization.int8 import check_values

FLOATS = (torch.float16, torch.bfloat16)
COMMUNICATION_ALGORITHMS = ("", "fullmesh", "hierarchy", "fullmesh_v1", "fullmesh_v2")
MAX_SHARED_EXPERTS = 4


class Route(NamedTuple):
    """The rows of one rank: their places in [BS, K + shared] flattened, in the order they are sent, and their number for each slot."""

    places: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class Layout:
    """Which rank has which experts; `shared` are the copies' number of shared experts, 0 where no rank has one.

    special  how many experts there are beyond the MoE experts
    members  the ranks of the group that take part, by their number among them; None: all
    """

    ranks: int
    rank: int
    experts: int
    shared_ranks: int
    shared: int
    special: int = 0
    members: tuple[int, ...] | None = None

    @property
    def slots(self) -> int:
        """How many there are on all ranks."""
        return self.shared_ranks + self.experts

    def slots_of(self, rank: int) -> int:
        """How many experts a rank has."""
        return 1 if rank < self.shared_ranks else self.experts // (self.ranks - self.shared_ranks)

    @property
    def slots_by_rank(self) -> list[int]:
        return [self.slots_of(rank) for rank in range(self.ranks)]

    def max_slots(self, elastic: bool) -> int:
        """The experts that this rank may have. `elastic`: elastic_info is given, so that a rank with a shared expert may become another."""
        local = self.slots_of(self.rank)
        return max(local, self.slots_of(self.ranks - 1)) if elastic else local

    def max_rows(
        self, tokens: int | torch.SymInt, global_bs: int, k: int | torch.SymInt, elastic: bool = False
    ) -> int | torch.SymInt:
        """A: the rows that this rank may receive."""
        total, local = global_bs or tokens * self.ranks, self.slots_of(self.ranks - 1)
        of_experts = total * (k if k < local else local)
        if not self.shared_ranks or (self.rank >= self.shared_ranks and not elastic):
            return of_experts
        copies = self.shared_ranks // self.shared
        of_shared = total // self.ranks * ((self.ranks + copies - 1) // copies)
        return torch.sym_max(of_shared, of_experts) if elastic else of_shared

    def route(self, expert_ids: Tensor, mask: Tensor | None) -> Route:
        """The rows of this rank for expert_ids [BS, K], those that the mask [BS] or [BS, K] leaves."""
        tokens, k = expert_ids.shape
        copies = self.shared_ranks // self.shared if self.shared else 1
        copy = torch.arange(self.shared, device=expert_ids.device) * copies + self.rank % copies
        experts = expert_ids.long() + self.shared_ranks
        if self.special:
            experts = experts.clamp_max(self.slots)
        slot = torch.cat((experts, copy.expand(tokens, self.shared)), 1)
        if mask is not None:
            active = mask_of_rows(mask, expert_ids)
            active = torch.cat((active, active.any(1, keepdim=True).expand(tokens, self.shared)), 1)
            slot = slot.masked_fill(~active, self.slots)
        sizes = torch.bincount(slot.flatten(), minlength=self.slots + 1)[: self.slots]
        return Route(slot.flatten().argsort(stable=True), sizes)


def mask_of_rows(mask: Tensor, expert_ids: Tensor) -> Tensor:
    """x_active_mask [BS] or [BS, K] as [BS, K]."""
    return mask.unsqueeze(1).expand(expert_ids.shape) if mask.dim() == 1 else mask


def check_layout(
    check: Checks,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    shared_expert_num: int,
    shared_expert_rank_num: int,
    special: Sequence[int] = (),
) -> Layout:
    """The layout. Raises ValueError on numbers that the documents exclude."""
    if ep_world_size < 1:
        check.refuse("ep_world_size", "at least 1", ep_world_size)
    check.value("ep_rank_id", ep_rank_id, range(ep_world_size))
    check.value("shared_expert_rank_num", shared_expert_rank_num, range(ep_world_size))
    check.value("shared_expert_num", shared_expert_num, range(MAX_SHARED_EXPERTS + 1))
    if shared_expert_rank_num == 0 and shared_expert_num > 1:
        check.refuse("shared_expert_num", "0 or 1 with shared_expert_rank_num 0", shared_expert_num)
    if shared_expert_rank_num and (shared_expert_num == 0 or shared_expert_rank_num % shared_expert_num):
        check.refuse(
            "shared_expert_rank_num", f"a multiple of {shared_expert_num} shared experts", shared_expert_rank_num
        )
    moe_ranks = ep_world_size - shared_expert_rank_num
    if moe_expert_num < 1 or moe_expert_num % moe_ranks:
        check.refuse("moe_expert_num", f"a positive multiple of the {moe_ranks} ranks with MoE experts", moe_expert_num)
    for name, count in zip(("zero_expert_num", "copy_expert_num", "const_expert_num"), special):
        if count < 0:
            check.refuse(name, "0 or more", count)
    shared = shared_expert_num if shared_expert_rank_num else 0
    return Layout(ep_world_size, ep_rank_id, moe_expert_num, shared_expert_rank_num, shared, sum(special))


def scaled_down(check: Checks, layout: Layout, elastic_info: Tensor | None) -> Layout:
    """The layout of the ranks that are left, by elastic_info, which is read on the host. Raises ValueError if it contradicts itself."""
    if elastic_info is None:
        return layout
    info = elastic_info.tolist()
    (lessened, ranks, shared_ranks, experts), tables = info[:4], info[4:]
    if not lessened:
        return layout
    new_rank, members = tables[: layout.ranks], tuple(tables[layout.ranks :][:ranks])
    in_order = len(set(members)) == len(members) and all(0 <= member < layout.ranks for member in members)
    if not 1 <= ranks <= layout.ranks or not in_order or any(new_rank[old] != new for new, old in enumerate(members)):
        check.refuse("elastic_info", "[1, ranks left, shared ranks, experts, new rank of each, rank of each new]", info)
    rank = new_rank[layout.rank]
    if rank < 0:
        check.refuse(
            "elastic_info", f"one with rank {layout.rank}, which calls the operator, among the ranks left", info
        )
    shared = layout.shared if shared_ranks else 0
    if not 0 <= shared_ranks < ranks or (shared_ranks and (not shared or shared_ranks % shared)):
        check.refuse("elastic_info", f"one with ranks for {layout.shared} shared experts, and others", info)
    if experts != layout.slots_of(layout.ranks - 1) * (ranks - shared_ranks):
        check.refuse("elastic_info", "one that leaves each rank its number of MoE experts", info)
    return replace(
        layout, ranks=ranks, rank=rank, experts=experts, shared_ranks=shared_ranks, shared=shared, members=members
    )


def check_reserved(
    check: Checks,
    activation_scale: Tensor | None,
    weight_scale: Tensor | None,
    group_list: Tensor | None,
    out_dtype: int,
    group_list_type: int,
) -> None:
    """The arguments that the documents of the combining operators reserve."""
    for name, value in (
        ("activation_scale", activation_scale),
        ("weight_scale", weight_scale),
        ("group_list", group_list),
    ):
        check.absent(name, value, "it is reserved")
    check.value("out_dtype", out_dtype, (0,))
    check.value("group_list_type", group_list_type, (0,))


def check_common(
    check: Checks,
    expert_ids: Tensor,
    mask: Tensor | None,
    layout: Layout,
    *,
    group_ep: str,
    tp_world_size: int,
    expert_shard_type: int,
    global_bs: int,
    comm_alg: str,
    elastic_info: Tensor | None,
    performance_info: Tensor | None,
) -> None:
    """What both operators ask of the routing."""
    for name, tensor, dtype, size in (
        ("elastic_info", elastic_info, torch.int32, 4 + 2 * layout.ranks),
        ("performance_info", performance_info, torch.int64, layout.ranks),
    ):
        if tensor is not None:
            check.dtype(name, tensor, (dtype,))
            check.rank(name, tensor, (1,), f"[{size}]")
            check.size(tensor.shape[0] == size, name, f"of shape [{size}]", tensor)
            check.device(name, tensor, "expert_ids", expert_ids)
    check.rank("expert_ids", expert_ids, (2,), "[BS, K]")
    check.dtype("expert_ids", expert_ids, (torch.int32,))
    check.size(expert_ids.shape[1] > 0, "expert_ids", "of K > 0", expert_ids)
    if not 1 <= len(group_ep) < 128:
        check.refuse("group_ep", "a name of 1 to 127 characters", repr(group_ep))
    if tp_world_size not in (0, 1):
        check.refuse("tp_world_size", "0 or 1, as the operator's page says", tp_world_size)
    check.value("expert_shard_type", expert_shard_type, (0,))
    check.value("comm_alg", comm_alg, COMMUNICATION_ALGORITHMS)
    if global_bs < 0 or global_bs % layout.ranks:
        check.refuse("global_bs", f"0 or a multiple of the {layout.ranks} ranks", global_bs)
    if mask is not None:
        check.dtype("x_active_mask", mask, (torch.bool,))
        check.rank("x_active_mask", mask, (1, 2), "[BS] or [BS, K]")
        check.device("x_active_mask", mask, "expert_ids", expert_ids)
        for size, expected in zip(mask.shape, expert_ids.shape):
            check.size(
                size == expected, "x_active_mask", f"of shape [BS] or [BS, K] of {tuple(expert_ids.shape)}", mask
            )


def check_routing_values(check: Checks, expert_ids: Tensor, mask: Tensor | None, layout: Layout) -> None:
    """The values that a wrong model would get wrong: checked where that needs no synchronization."""
    experts = layout.experts + layout.special
    valid = (expert_ids >= 0) & (expert_ids < experts)
    if mask is not None:
        valid = valid | ~mask_of_rows(mask, expert_ids)
    check_values(check, "expert_ids", expert_ids, valid.all(), f"from 0 to {experts - 1}")
    if mask is not None and mask.dim() == 1:
        ordered = (mask[1:] <= mask[:-1]).all()
        check_values(check, "x_active_mask", mask, ordered, "true before false")
