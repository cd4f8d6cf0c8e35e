"""Where the rows of `npu_moe_distribute_dispatch_v2` go, and so where those of `npu_moe_distribute_combine_v2` come from.

    BS tokens of this rank    K experts of each    R ranks, the first R_s of them with shared experts    A rows a rank may receive

A *slot* is an expert on a rank: first one for each rank with a shared expert, then the MoE experts, so that slots are ordered by rank.
Each token goes to its K experts and, where ranks have shared experts, to a copy of each of them. A rank's rows go out ordered by slot,
then token. Facts: the operators' pages in op-plugin's documentation, the documents of aclnnMoeDistributeDispatchV2 to V4, the design
document of the two operators, and torch_npu's fake implementation for shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """Which rank has which experts; `shared` are the copies' number of shared experts, 0 where no rank has one."""

    ranks: int
    rank: int
    experts: int
    shared_ranks: int
    shared: int

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

    def max_rows(self, tokens: int | torch.SymInt, global_bs: int, k: int | torch.SymInt) -> int | torch.SymInt:
        """A: the rows that this rank may receive."""
        total = global_bs or tokens * self.ranks
        if self.rank < self.shared_ranks:
            copies = self.shared_ranks // self.shared
            return total // self.ranks * ((self.ranks + copies - 1) // copies)
        local = self.slots_of(self.rank)
        return total * (k if k < local else local)

    def route(self, expert_ids: Tensor, mask: Tensor | None) -> Route:
        """The rows of this rank for expert_ids [BS, K], those that the mask [BS] or [BS, K] leaves."""
        tokens, k = expert_ids.shape
        copies = self.shared_ranks // self.shared if self.shared else 1
        copy = torch.arange(self.shared, device=expert_ids.device) * copies + self.rank % copies
        slot = torch.cat((expert_ids.long() + self.shared_ranks, copy.expand(tokens, self.shared)), 1)
        if mask is not None:
            active = _mask_of_rows(mask, expert_ids)
            active = torch.cat((active, active.any(1, keepdim=True).expand(tokens, self.shared)), 1)
            slot = slot.masked_fill(~active, self.slots)
        sizes = torch.bincount(slot.flatten(), minlength=self.slots + 1)[: self.slots]
        return Route(slot.flatten().argsort(stable=True), sizes)


def _mask_of_rows(mask: Tensor, expert_ids: Tensor) -> Tensor:
    return mask.unsqueeze(1).expand(expert_ids.shape) if mask.dim() == 1 else mask


def check_layout(
    check: Checks,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    shared_expert_num: int,
    shared_expert_rank_num: int,
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
    shared = shared_expert_num if shared_expert_rank_num else 0
    return Layout(ep_world_size, ep_rank_id, moe_expert_num, shared_expert_rank_num, shared)


def check_unserved(check: Checks, zero_or_none: dict[str, object]) -> None:
    """Arguments of the schema that must be left at 0 or None."""
    for name, value in zero_or_none.items():
        if value is not None and (isinstance(value, Tensor) or value != 0):
            got = tuple(value.shape) if isinstance(value, Tensor) else value
            check.refuse(name, "0 or None, as by default (it has no fallback)", got)


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
) -> None:
    """What both operators ask of the routing."""
    check.rank("expert_ids", expert_ids, (2,), "[BS, K]")
    check.dtype("expert_ids", expert_ids, (torch.int32,))
    check.size(expert_ids.shape[1] > 0, "expert_ids", "of K > 0", expert_ids)
    if not 1 <= len(group_ep) < 128:
        check.refuse("group_ep", "a name of 1 to 127 characters", repr(group_ep))
    if tp_world_size not in (0, 1):
        check.refuse("tp_world_size", "0 or 1 (communication of tensor parallelism has no fallback)", tp_world_size)
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
    valid = (expert_ids >= 0) & (expert_ids < layout.experts)
    if mask is not None:
        valid = valid | ~_mask_of_rows(mask, expert_ids)
    check_values(check, "expert_ids", expert_ids, valid.all(), f"from 0 to {layout.experts - 1}")
    if mask is not None and mask.dim() == 1:
        ordered = (mask[1:] <= mask[:-1]).all()
        check_values(check, "x_active_mask", mask, ordered, "true before false")
