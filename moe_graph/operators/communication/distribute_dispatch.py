"""`npu_moe_distribute_dispatch(x, expert_ids, ...)`: the first form of npu_moe_distribute_dispatch_v2, with which it shares all but this:

    expand_idx [BS * K]    in place of assist_info: how many choices before this one, token by token, go to the same expert
    shared_expert_num      1 at most; shared_expert_rank_num divides ep_world_size

No special experts, no elastic_info, no performance_info, no int32 tokens. Sources: the operator's page in op-plugin's documentation, the
kernel in ops-transformer (expand_idx).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.communication import distribute
from moe_graph.operators.communication.distribute_dispatch_v2 import Options, dispatched
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed

_check = Checks("npu_moe_distribute_dispatch")


def dispatch(
    x: Tensor,
    expert_ids: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    scales: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    expert_scales: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
) -> tuple[Tensor, ...]:
    """The outputs, as the module's document says; all ranks of the group must call it.

    Raises ValueError on arguments that the documents exclude or that are not served, and what torch.distributed raises.
    """
    _check.dtype("x", x, distribute.FLOATS)
    _check.value("shared_expert_num", shared_expert_num, (0, 1))
    if shared_expert_rank_num and ep_world_size % shared_expert_rank_num:
        _check.refuse("shared_expert_rank_num", f"a divisor of ep_world_size, {ep_world_size}", shared_expert_rank_num)
    options = Options(
        scales=scales,
        x_active_mask=x_active_mask,
        expert_scales=expert_scales,
        group_tp=group_tp,
        tp_world_size=tp_world_size,
        tp_rank_id=tp_rank_id,
        expert_shard_type=expert_shard_type,
        shared_expert_num=shared_expert_num,
        shared_expert_rank_num=shared_expert_rank_num,
        quant_mode=quant_mode,
        global_bs=global_bs,
        expert_token_nums_type=expert_token_nums_type,
    )
    named = (group_ep, ep_world_size, ep_rank_id, moe_expert_num)
    expand_x, dynamic_scales, _, *others = dispatched(_check, x, expert_ids, *named, options)
    return expand_x, dynamic_scales, _expand_idx(expert_ids), *others


def _expand_idx(expert_ids: Tensor) -> Tensor:
    experts, order = expert_ids.flatten().sort(stable=True)
    place = torch.arange(len(order), device=order.device) - torch.searchsorted(experts, experts)
    return torch.empty_like(order).scatter_(0, order, place).to(torch.int32)


OPERATOR = of_torch_npu(
    "npu_moe_distribute_dispatch", dispatch, ge=[GeKernel("MoeDistributeDispatch", renamed(dispatch))]
)
