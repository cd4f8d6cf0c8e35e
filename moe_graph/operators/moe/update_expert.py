"""`npu_moe_update_expert(expert_ids, eplb_table, ...)`: from logical experts to their physical copies, and which of a token's experts stay.

    expert_ids [BS, K] int32, int64   eplb_table [experts, F] int32: how many copies an expert has, then their places
    balance_mode 0    the copy of this rank: local_rank_id // ceil(world_size / copies)     1: of the token: its position % copies
    expert_scales [BS, K], pruning_threshold [K] or [1, K]: an expert stays where its scale is above threshold * the token's sum
    active_mask [BS] bool: tokens that take part

    -> balanced_expert_ids like expert_ids; balanced_active_mask [BS, K] bool, which has a meaning with expert_scales alone (here: all true)

Source: the operator's page in the torch_npu documentation. Scales are compared in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed
from moe_graph.operators.quantization.int8 import check_values

_check = Checks("npu_moe_update_expert")
BY_RANK, BY_TOKEN = 0, 1


def moe_update_expert(
    expert_ids: Tensor,
    eplb_table: Tensor,
    *,
    expert_scales: Tensor | None = None,
    pruning_threshold: Tensor | None = None,
    active_mask: Tensor | None = None,
    local_rank_id: int = -1,
    world_size: int = -1,
    balance_mode: int = BY_RANK,
) -> tuple[Tensor, Tensor]:
    """As the module's document says. Raises ValueError for arguments that do not fit."""
    _check.rank("expert_ids", expert_ids, (2,), "[BS, K]")
    _check.rank("eplb_table", eplb_table, (2,), "[experts, F]")
    _check.value("balance_mode", balance_mode, (BY_RANK, BY_TOKEN))
    if (expert_scales is None) != (pruning_threshold is None):
        _check.refuse("pruning_threshold", "given with expert_scales, and only then", pruning_threshold)
    if active_mask is not None and expert_scales is None:
        _check.refuse("active_mask", "None without expert_scales", active_mask.shape)
    known = ((expert_ids >= 0) & (expert_ids < len(eplb_table))).all()
    check_values(_check, "expert_ids", expert_ids, known, f"from 0 to {len(eplb_table) - 1}")
    rows = eplb_table.index_select(0, expert_ids.reshape(-1)).view(*expert_ids.shape, -1)
    copies = rows[..., 0].long()
    if balance_mode == BY_RANK:
        if not 0 <= local_rank_id < world_size:
            _check.refuse(
                "local_rank_id", f"from 0 to world_size - 1 = {world_size - 1} with balance_mode 0", local_rank_id
            )
        place = local_rank_id // ((world_size + copies - 1) // copies)
    else:
        place = torch.arange(len(expert_ids)).unsqueeze(1) % copies
    ids = rows.gather(-1, (place + 1).unsqueeze(-1)).squeeze(-1).to(expert_ids.dtype)
    if expert_scales is None or pruning_threshold is None:
        return ids, torch.ones(expert_ids.shape, dtype=torch.bool)
    scales = expert_scales.float()
    stays = scales > scales.sum(-1, keepdim=True) * pruning_threshold.float().reshape(1, -1)
    return ids, stays if active_mask is None else stays & active_mask.unsqueeze(1)


OPERATOR = of_torch_npu(
    "npu_moe_update_expert", moe_update_expert, ge=[GeKernel("MoeUpdateExpert", renamed(moe_update_expert))]
)
