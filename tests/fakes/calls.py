"""Calls that torch_npu's fake implementations accept and drawn arguments seldom or never are: the figures of the operators' documents.

`CALLS`: operator -> functions that return (args, kwargs) on the device of the walk. `UNSATISFIABLE`: operators whose fake implementation
raises for every call in torch_npu 2.13, and why.
"""

from __future__ import annotations

import torch

HIFLOAT8, FLOAT4, E8M0, INT4 = 290, 296, 293, 16  # torch_npu's numbers of types that torch does not have, or not all


def t(dtype: str, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype), device="npu:0")


def call(*args, **kwargs):
    return list(args), kwargs


def _dispatch(x="bfloat16", **kwargs):
    return call(t(x, 4, 64), t("int32", 4, 2), "group", 8, 0, 16, **kwargs)


def _combine(**kwargs):
    tensors = (t("bfloat16", 64, 64), t("int32", 4, 2), t("int32", 64 * 128), t("int32", 16), t("float32", 4, 2))
    return call(*tensors, "group", 8, 0, 16, **kwargs)


def _grouped(x, weight, **kwargs):
    return call(x, weight, **kwargs)


def _kv_rmsnorm():
    caches = t("bfloat16", 2, 1, 8, 64), t("bfloat16", 2, 1, 8, 512)
    rotary = t("bfloat16", 2, 1, 1, 64), t("bfloat16", 2, 1, 1, 64)
    return call(t("bfloat16", 2, 1, 1, 576), t("bfloat16", 512), *rotary, t("int64", 2), *caches)


def _qkv_rms_norm():
    norms, rotary = (t("bfloat16", 128), t("bfloat16", 128)), (t("bfloat16", 4, 128), t("bfloat16", 4, 128))
    caches = t("bfloat16", 4, 256), t("bfloat16", 1, 8, 16, 16), t("bfloat16", 1, 8, 16, 16)
    return call(t("bfloat16", 4, 512), *norms, *rotary, t("int64", 4), *caches, [2, 2, 4, 128], [2, 1, 1])


def _attention_update():
    out, softmax = (lambda: t("float16", 8, 2, 32)), (lambda: t("float32", 2, 2, 8, 8))
    return call(out(), softmax(), softmax(), out(), softmax(), softmax())


CALLS = {
    # What this package's fallbacks do not compute, and a device does.
    "npu_grouped_matmul": (
        lambda: _grouped(
            [t("float8_e4m3fn", 8, 32)],
            [t("float8_e4m3fn", 2, 32, 16)],
            group_list=t("int64", 2),
            group_type=0,
            split_item=3,
            output_dtype=15,
            scale=[t("float32", 2, 16)],
            per_token_scale=[t("float32", 8)],
        ),
        lambda: _grouped(
            [t("int8", 8, 32)],
            [t("int32", 2, 32, 2)],
            group_list=t("int64", 2),
            group_type=0,
            split_item=3,
            output_dtype=5,
            scale=[t("int64", 2, 16)],
        ),
        lambda: _grouped(
            [t("bfloat16", 8, 32)],
            [t("int32", 2, 32, 2)],
            group_list=t("int64", 2),
            group_type=0,
            split_item=2,
            antiquant_scale=[t("bfloat16", 2, 16)],
        ),
        lambda: _grouped(
            [t("uint8", 8, 32)],
            [t("uint8", 2, 32, 16)],
            group_list=t("int64", 2),
            group_type=0,
            split_item=3,
            x_dtype=HIFLOAT8,
            weight_dtype=HIFLOAT8,
            output_dtype=15,
        ),
        lambda: _grouped([t("float16", 8, 32)], [t("float16", 16, 4), t("float16", 16, 4)], group_type=2, split_item=0),
        lambda: _grouped(
            [t("float16", 8, 32)], [t("float16", 2, 32, 4)], group_list=t("int64", 2), group_type=1, split_item=2
        ),
    ),
    "npu_grouped_matmul.List": (
        lambda: _grouped(
            [t("float16", 8, 32)],
            [t("float16", 32, 4), t("float16", 32, 4)],
            group_list=[3, 8],
            group_type=0,
            split_item=2,
        ),
        lambda: _grouped(
            [t("float16", 3, 32), t("float16", 5, 32)],
            [t("float16", 32, 4), t("float16", 32, 4)],
            group_type=0,
            group_list=[3, 8],
            split_item=3,
        ),
        lambda: _grouped(
            [t("float16", 8, 32)], [t("float16", 32, 4), t("float16", 32, 4)], group_list=[3, 8], group_type=1
        ),
    ),
    "npu_dynamic_quant": tuple(
        lambda number=number: call(t("float16", 4, 64), dst_type=number) for number in (INT4, HIFLOAT8, 23, 24)
    )
    + (lambda: call(t("float32", 64)), lambda: call(t("float16", 4, 65), dst_type=INT4)),
    "npu_dequant_swiglu_quant": (
        lambda: call(t("int32", 4, 64), weight_scale=t("float32", 64), activation_scale=t("float32", 4), quant_mode=1),
        lambda: call(t("bfloat16", 4, 64), dst_type=24, quant_mode=1),
        lambda: call(t("bfloat16", 4, 64), dst_type=FLOAT4, activate_dim=0),
    ),
    "npu_swiglu": (lambda: call(t("int32", 4, 64)), lambda: call(t("float16", 4, 7))),
    "npu_moe_distribute_dispatch": (_dispatch, lambda: _dispatch(quant_mode=2, tp_world_size=2)),
    "npu_moe_distribute_dispatch_v2": (
        _dispatch,
        lambda: _dispatch(copy_expert_num=1, zero_expert_num=1, const_expert_num=1),
        lambda: _dispatch("int32", scales=t("float32", 4)),
        lambda: _dispatch(quant_mode=4, y_dtype=24),
        lambda: _dispatch(tp_world_size=2, group_tp="tp"),
        lambda: _dispatch(elastic_info=t("int32", 20), performance_info=t("int64", 8)),
        lambda: _dispatch(x_active_mask=t("bool", 4, 2), expert_scales=t("float32", 4, 2)),
        lambda: _dispatch(expert_token_nums_type=2),
        lambda: _dispatch(shared_expert_rank_num=8),
    ),
    "npu_moe_distribute_combine": (
        lambda: call(*_combine()[0][:2], t("int32", 8), *_combine()[0][3:], comm_quant_mode=2),
    ),
    "npu_moe_distribute_combine_v2": (
        _combine,
        lambda: _combine(ori_x=t("bfloat16", 4, 64), copy_expert_num=1),
        lambda: _combine(ori_x=t("bfloat16", 4, 64), const_expert_num=1, const_expert_v=t("bfloat16", 1, 64)),
        lambda: _combine(comm_quant_mode=2, tp_world_size=2, group_tp="tp"),
    ),
    "npu_moe_finalize_routing": (
        lambda: call(
            t("float16", 8, 16),
            t("float16", 4, 16),
            None,
            t("float16", 2, 10),
            t("float16", 4, 2),
            t("int32", 8),
            t("int32", 4, 2),
        ),
        lambda: call(t("float16", 8, 16), None, None, t("float32", 2, 16), None, t("int32", 8), None, 2, 2),
    ),
    "npu_moe_init_routing_v2": tuple(
        lambda mode=mode: call(t("bfloat16", 8, 128), t("int32", 8, 2), expert_num=4, quant_mode=mode, active_num=5)
        for mode in (-1, 1, 2, 3, 6, 8, 13)
    ),
    "npu_moe_token_permute": (
        lambda: call(t("bfloat16", 8, 16), t("int32", 8, 2), 5),
        lambda: call(t("int32", 8, 16), t("int64", 8, 2), None, True),
    ),
    "npu_moe_token_unpermute": (lambda: call(t("bfloat16", 8, 16), t("int32", 8), t("float32", 4, 2), True, [4, 16]),),
    "npu_moe_gating_top_k": (
        lambda: call(t("float32", 8, 16), 2, input_ids=t("int64", 8), tid2eid=t("int32", 32, 2)),
        lambda: call(t("float64", 8, 16), 200, norm_type=5),
    ),
    "npu_moe_re_routing": (lambda: call(t("float16", 8, 16), t("int32", 2, 4)),),
    # What drawn arguments do not hit.
    "_npu_matmul_abft_verify": (
        lambda: call(t("float16", 4, 8), t("float16", 8, 16), t("float32", 4, 16), t("float16", 16)),
    ),
    "npu_deformable_conv2d": (
        lambda: call(
            t("float16", 1, 4, 8, 8),
            t("float16", 4, 4, 3, 3),
            t("float16", 1, 27, 8, 8),
            None,
            [3, 3],
            [1, 1, 1, 1],
            [1, 1, 1, 1],
        ),
    ),
    "npu_dequant_rope_quant_kvcache": (
        lambda: call(
            t("int32", 2, 1, 384),
            t("float16", 2, 1, 1, 128),
            t("float16", 2, 1, 1, 128),
            t("int8", 2, 8, 1, 128),
            t("int8", 2, 8, 1, 128),
            t("int32", 2),
            t("float32", 128),
            t("float32", 128),
            [128, 128, 128],
        ),
    ),
    "npu_grouped_dynamic_mx_quant": (lambda: call(t("bfloat16", 128, 64), t("int32", 2)),),
    "npu_grouped_matmul_finalize_routing": (
        lambda: call(t("int8", 8, 32), t("int8", 2, 32, 16), t("int64", 2), scale=t("float32", 2, 16)),
    ),
    "npu_kv_rmsnorm_rope_cache": (_kv_rmsnorm,),
    "npu_kv_rmsnorm_rope_cache_v2": (_kv_rmsnorm,),
    "npu_kv_rmsnorm_rope_cache_v2_functional": (_kv_rmsnorm,),
    "npu_moe_token_permute_grad_v2": (lambda: call(t("float16", 8, 16), t("int32", 8), 4, torch.float16, 2),),
    "npu_moe_token_unpermute_grad": (
        lambda: call(t("float16", 8, 16), t("float16", 4, 16), t("int32", 8), t("float16", 4, 2)),
    ),
    "npu_recurrent_gated_delta_rule_functional": (
        lambda: call(
            t("bfloat16", 4, 2, 16), t("bfloat16", 4, 2, 16), t("bfloat16", 4, 2, 32), t("bfloat16", 8, 2, 32, 16)
        ),
    ),
    "npu_matmul_compress_dequant": (
        lambda: call(t("int8", 4, 32), t("int8", 64), t("int8", 8), t("int32", 1, 16), t("uint64", 1, 16)),
    ),
    "npu_mhc_pre": (lambda: call(t("bfloat16", 4, 2, 16), t("float32", 8, 32), t("float32", 3), t("float32", 8)),),
    "npu_qkv_rms_norm_rope_cache": (_qkv_rms_norm,),
    "npu_qkv_rms_norm_rope_cache_functional": (_qkv_rms_norm,),
    "npu_quant_conv2d": (
        lambda: call(
            t("int8", 1, 4, 8, 8), t("int8", 4, 4, 3, 3), t("int64", 4), [1, 1], [1, 1], [1, 1], output_dtype=5
        ),
    ),
    "npu_quant_grouped_matmul_dequant": (
        lambda: call(t("float16", 4, 32), t("int8", 2, 16, 32), t("float32", 2, 16), t("int64", 2)),
    ),
    "npu_quant_matmul_dequant": (lambda: call(t("float16", 4, 32), t("int8", 16, 32), t("float32", 16)),),
    "npu_quant_matmul_gelu": (lambda: call(t("int8", 4, 32), t("int8", 32, 16), t("float32", 4), t("float32", 16)),),
    "npu_quant_matmul_reduce_sum": (
        lambda: call(
            t("int8", 2, 4, 32), t("int8", 2, 32, 16), x1_scale=t("float32", 2, 4), x2_scale=t("bfloat16", 16)
        ),
    ),
    "npu_ring_attention_update": (_attention_update,),
    "npu_rms_norm_quant_v2": (
        lambda: call(
            t("float16", 4, 16), t("float16", 16), t("float16", 1), offset=t("int8", 1), beta=t("float16", 16)
        ),
    ),
    "npu_transpose_quant_batchmatmul": (
        lambda: call(
            t("float8_e4m3fn", 4, 2, 32),
            t("float8_e4m3fn", 2, 32, 16),
            dtype=5,
            perm_x1=[1, 0, 2],
            perm_x2=[0, 1, 2],
            perm_y=[1, 0, 2],
        ),
    ),
}

UNSATISFIABLE = {
    "npu_fusion_attention_grad_v2": "empty_like of a list",
    "npu_geglu_grad": "returns two tensors of three",
    "npu_quant_fusion_attention": "a name that is not defined",
    "npu_quant_fusion_attention_backward": "a name that is not defined",
    "npu_scatter_list_": "returns something, by its schema nothing",
    "obfuscation_calculate": "a parameter that the schema has not",
}
