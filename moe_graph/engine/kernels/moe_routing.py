"""Routing operators of a Mixture-of-Experts layer: GE's names and attributes over the fallbacks of `moe_graph.family`."""

from __future__ import annotations

from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.family.init_routing_v2 import init_routing_v2


@kernel("MoeInitRoutingV3")
def moe_init_routing_v3(
    x: Tensor,
    expert_idx: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: list | None = None,
    row_idx_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GE MoeInitRoutingV3: npu_moe_init_routing_v2."""
    return init_routing_v2(
        x,
        expert_idx,
        scale=scale,
        offset=offset,
        active_num=active_num,
        expert_capacity=expert_capacity,
        expert_num=expert_num,
        drop_pad_mode=drop_pad_mode,
        expert_tokens_num_type=expert_tokens_num_type,
        expert_tokens_num_flag=expert_tokens_num_flag,
        quant_mode=quant_mode,
        active_expert_range=active_expert_range or (),
        row_idx_type=row_idx_type,
    )
