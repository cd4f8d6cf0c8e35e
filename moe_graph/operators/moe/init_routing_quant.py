"""`npu_moe_init_routing_quant(x, expert_idx, ...)`: tokens expanded to their experts, sorted by expert, and int8.

    x [N, H], expert_idx [N, K] int32, of `expert_num` experts
    -> expanded_x int8, expanded_row_idx [N * K] int32, counts, counts before capacity, scales: as npu_moe_init_routing_v2 has them

    active_num               above 0: at most so many rows, drop_pad_mode 0
    expert_tokens_num_mode   0: counts is None, 1: their running sum, 2: the counts; [expert_num] int32, drop_pad_mode 0
    expert_tokens_before_capacity_flag   with drop_pad_mode 1: how many tokens each expert was to have, else None
    quant_mode               0: round(x * scale + offset), both [1], scales is None
                             1: scale [expert_num, H], [1, H] or None, scales float32

Sources: op-plugin's C++ and test, npu_moe_init_routing_v2's documents. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.moe.init_routing_v2 import DROP_PAD, DROPLESS, DYNAMIC, STATIC, init_routing_v2

_check = Checks("npu_moe_init_routing_quant")
_NONE, _CUMSUM, _COUNT = 0, 1, 2
Results = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None", "Tensor | None"]


def init_routing_quant(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    active_num: int = 1024,
    expert_capacity: int = 0,
    expert_num: int = 256,
    drop_pad_mode: int = DROPLESS,
    expert_tokens_num_mode: int = _NONE,
    expert_tokens_before_capacity_flag: bool = False,
    quant_mode: int = DYNAMIC,
) -> Results:
    """The five outputs. Raises ValueError as npu_moe_init_routing_v2 does."""
    _check.value("expert_tokens_num_mode", expert_tokens_num_mode, (_NONE, _CUMSUM, _COUNT))
    _check.value("quant_mode", quant_mode, (STATIC, DYNAMIC))
    padded = drop_pad_mode == DROP_PAD
    expanded, index, _, scales = init_routing_v2(
        x,
        expert_idx,
        scale=scale,
        offset=offset,
        active_num=active_num if active_num > 0 and not padded else -1,
        expert_capacity=expert_capacity if padded else -1,
        expert_num=expert_num,
        drop_pad_mode=drop_pad_mode,
        quant_mode=quant_mode,
        active_expert_range=[0, expert_num],
        row_idx_type=0,
    )
    counts = torch.bincount(expert_idx.flatten(), minlength=expert_num).to(torch.int32)
    listed = before = None
    if padded:
        before = counts if expert_tokens_before_capacity_flag else None
    elif expert_tokens_num_mode != _NONE:
        listed = counts if expert_tokens_num_mode == _COUNT else counts.cumsum(0).to(torch.int32)
    return expanded, index, listed, before, scales if quant_mode == DYNAMIC else None


OPERATOR = of_torch_npu("npu_moe_init_routing_quant", init_routing_quant)
