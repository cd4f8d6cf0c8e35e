"""`npu_moe_distribute_combine(expand_x, expert_ids, expand_idx, ...)`: the first form of npu_moe_distribute_combine_v2.

It differs in what it lacks: special experts, elastic_info, performance_info, communication algorithms. activation_scale, weight_scale,
group_list, out_dtype and group_list_type are reserved by the operator's page in op-plugin's documentation, the source.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.communication import distribute
from moe_graph.operators.communication.distribute_combine_v2 import Options, combined
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed

_check = Checks("npu_moe_distribute_combine")


def combine(
    expand_x: Tensor,
    expert_ids: Tensor,
    expand_idx: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    tp_send_counts: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    activation_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    group_list: Tensor | None = None,
    expand_scales: Tensor | None = None,
    shared_expert_x: Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    out_dtype: int = 0,
    comm_quant_mode: int = 0,
    group_list_type: int = 0,
) -> Tensor:
    """y [BS, H], as npu_moe_distribute_combine_v2's; all ranks of the group must call it.

    Raises ValueError on arguments that the documents exclude or that are not served, and what torch.distributed raises.
    """
    distribute.check_reserved(_check, activation_scale, weight_scale, group_list, out_dtype, group_list_type)
    options = Options(
        tp_send_counts=tp_send_counts,
        x_active_mask=x_active_mask,
        expand_scales=expand_scales,
        shared_expert_x=shared_expert_x,
        group_tp=group_tp,
        tp_world_size=tp_world_size,
        tp_rank_id=tp_rank_id,
        expert_shard_type=expert_shard_type,
        shared_expert_num=shared_expert_num,
        shared_expert_rank_num=shared_expert_rank_num,
        global_bs=global_bs,
        comm_quant_mode=comm_quant_mode,
    )
    named = (group_ep, ep_world_size, ep_rank_id, moe_expert_num)
    return combined(_check, expand_x, expert_ids, ep_send_counts, expert_scales, *named, options).to(expand_x.dtype)


OPERATOR = of_torch_npu(
    "npu_moe_distribute_combine",
    combine,
    ge=[GeKernel("MoeDistributeCombine", renamed(combine, without=["shared_expert_x"]))],
)
