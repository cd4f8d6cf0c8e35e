"""Declared operators that `verify` makes no call of, and why."""

from __future__ import annotations

_SEVERAL_RANKS = "it takes a group of several ranks, of which `verify` has one"
_WORKSPACE = "it returns memory of a kernel's own size, with nothing in it to compare"

NOT_CALLED: dict[str, str] = {
    "_npu_distribute_barrier": _SEVERAL_RANKS,
    "npu_all_gather_base_mm": _SEVERAL_RANKS,
    "npu_all_to_all_matmul": _SEVERAL_RANKS,
    "npu_all_to_all_quant_matmul": _SEVERAL_RANKS,
    "npu_alltoallv_gmm": _SEVERAL_RANKS,
    "npu_alltoallv_quant_gmm": _SEVERAL_RANKS,
    "npu_gmm_alltoallv": _SEVERAL_RANKS,
    "npu_quant_gmm_alltoallv": _SEVERAL_RANKS,
    "npu_matmul_all_to_all": _SEVERAL_RANKS,
    "npu_mm_all_reduce_base": _SEVERAL_RANKS,
    "npu_mm_reduce_scatter_base": _SEVERAL_RANKS,
    "npu_moe_distribute_combine": _SEVERAL_RANKS,
    "npu_moe_distribute_combine_add_rms_norm": _SEVERAL_RANKS,
    "npu_moe_distribute_combine_v2": _SEVERAL_RANKS,
    "npu_moe_distribute_dispatch": _SEVERAL_RANKS,
    "npu_moe_distribute_dispatch_v2": _SEVERAL_RANKS,
    "npu_quant_matmul_all_to_all": _SEVERAL_RANKS,
    "_npu_paged_attention_get_workspace": _WORKSPACE,
    "_npu_paged_attention_v2_get_workspace": _WORKSPACE,
    "_npu_multi_head_latent_attention_get_workspace.lse": _WORKSPACE,
    "_npu_fused_infer_attention_score_get_max_workspace": _WORKSPACE,
    "_npu_fused_infer_attention_score_v2_get_max_workspace": _WORKSPACE,
    "_npu_fusion_attention_v3_get_max_workspace": _WORKSPACE,
    "_npu_fusion_attention_grad_v3_get_max_workspace": _WORKSPACE,
    "_npu_dropout_gen_mask.Tensor": "it draws random bits, and a device's generator draws others",
    "npu_sim_exponential_": "it draws random numbers, and a device's generator draws others",
    "npu_prefetch": "it has no result: it moves data to the cache",
}
