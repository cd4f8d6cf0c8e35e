"""`npu_moe_distribute_combine_add_rms_norm(expand_x, ..., residual_x, gamma, ...)`: npu_moe_distribute_combine_v2, then RmsNorm.

    residual_x [BS, 1, H], gamma [H]     ->  y, x [BS, 1, H] of expand_x's dtype, rstd [BS, 1, 1] float32
    x = combined + residual_x            y = x * rstd * gamma        rstd = 1 / sqrt(mean(x^2) + norm_eps)

Everything up to y is float32; x and y are rounded once. (The device's kernel rounds x * rstd before gamma, too: y may differ by a step of
its dtype.) Tokens outside x_active_mask combine to 0 here and are not written on a device. Sources: the operator's page in op-plugin's
documentation; the kernel in ops-transformer (what is rounded where).
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.communication import distribute
from moe_graph.operators.communication.distribute_combine_v2 import Options, combined
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed
from moe_graph.operators.normalization.rms_norm import rms_norm

_check = Checks("npu_moe_distribute_combine_add_rms_norm")


def combine_add_rms_norm(
    expand_x: Tensor,
    expert_ids: Tensor,
    expand_idx: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    residual_x: Tensor,
    gamma: Tensor,
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
    elastic_info: Tensor | None = None,
    ori_x: Tensor | None = None,
    const_expert_alpha_1: Tensor | None = None,
    const_expert_alpha_2: Tensor | None = None,
    const_expert_v: Tensor | None = None,
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
    comm_alg: str = "",
    norm_eps: float = 1e-6,
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, rstd and x, as the module's document says; all ranks of the group must call it.

    Raises ValueError on arguments that the documents exclude or that are not served, and what torch.distributed raises.
    """
    distribute.check_reserved(_check, activation_scale, weight_scale, group_list, out_dtype, group_list_type)
    tokens, hidden = expert_ids.shape[0], expand_x.shape[-1]
    for name, tensor, shape in (("residual_x", residual_x, (tokens, 1, hidden)), ("gamma", gamma, (hidden,))):
        _check.dtype(name, tensor, (expand_x.dtype,))
        _check.device(name, tensor, "expand_x", expand_x)
        _check.size(tuple(tensor.shape) == shape, name, f"of shape {list(shape)}", tensor)
    options = Options(
        tp_send_counts=tp_send_counts,
        x_active_mask=x_active_mask,
        expand_scales=expand_scales,
        shared_expert_x=shared_expert_x,
        elastic_info=elastic_info,
        ori_x=ori_x,
        const_expert_alpha_1=const_expert_alpha_1,
        const_expert_alpha_2=const_expert_alpha_2,
        const_expert_v=const_expert_v,
        group_tp=group_tp,
        tp_world_size=tp_world_size,
        tp_rank_id=tp_rank_id,
        expert_shard_type=expert_shard_type,
        shared_expert_num=shared_expert_num,
        shared_expert_rank_num=shared_expert_rank_num,
        global_bs=global_bs,
        comm_quant_mode=comm_quant_mode,
        comm_alg=comm_alg,
        zero_expert_num=zero_expert_num,
        copy_expert_num=copy_expert_num,
        const_expert_num=const_expert_num,
    )
    named = (group_ep, ep_world_size, ep_rank_id, moe_expert_num)
    y = combined(_check, expand_x, expert_ids, ep_send_counts, expert_scales, *named, options)
    x = y.unsqueeze(1) + residual_x.float()
    y, rstd = rms_norm(x, gamma, norm_eps)
    return y.to(expand_x.dtype), rstd, x.to(expand_x.dtype)


OPERATOR = of_torch_npu(
    "npu_moe_distribute_combine_add_rms_norm",
    combine_add_rms_norm,
    ge=[GeKernel("MoeDistributeCombineAddRmsNorm", renamed(combine_add_rms_norm, assist_info="expand_idx"))],
)
