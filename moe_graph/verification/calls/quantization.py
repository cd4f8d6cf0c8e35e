"""Calls to and from integers, float8 and float4."""

from __future__ import annotations

import torch

from moe_graph.verification.calls.inputs import Call, Inputs

_QINT8, _E4M3, _FLOAT4 = 12, 24, 296  # numbers of dtypes, for parameters of type int


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    x, wide, gamma = r.floats(8, 128), r.floats(8, 256), r.floats(128)
    brain, wide_brain = r.floats(64, 128, dtype=torch.bfloat16), r.floats(64, 256, dtype=torch.bfloat16)
    ends = torch.tensor([3, 8], dtype=torch.int32)
    halves = torch.tensor([24, 64], dtype=torch.int32)
    sums = r.numbers(2000, 8, 256)
    dequantised = {"weight_scale": r.scales(256), "activation_scale": r.scales(8)}
    small = r.numbers(448, 64, 128).float().div(448)
    element = getattr(torch, "float8_e4m3fn", torch.uint8)
    return {
        "npu_dynamic_quant": [Call((x,)), Call((x.bfloat16(),), {"smooth_scales": gamma.bfloat16()})],
        "npu_dynamic_quant_asymmetric": [Call((x,))],
        "npu_quantize": [Call((x, r.scales(128) * 2000, torch.zeros(128), _QINT8, -1, False))],
        "npu_trans_quant_param": [Call((r.scales(64),))],
        "npu_anti_quant": [Call((r.int8(8, 128), r.scales(128)), {"offset": gamma.float()})],
        "npu_group_quant": [Call((x, r.floats(2, 128) * 20, ends))],
        "npu_convert_weight_to_int4pack": [
            Call((r.numbers(16, 64, 64) - 8,)),
            Call((r.numbers(13, 64, 64).sub(6).div(2, rounding_mode="floor").float(),), product="950"),
        ],
        "npu_dequant_bias": [
            Call((r.numbers(999, 8, 64), r.scales(64), r.scales(8), None), {"output_dtype": torch.float16})
        ],
        "npu_dequant_swiglu_quant": [Call((sums,), {**dequantised, "quant_scale": r.scales(1, 128), "quant_mode": 1})],
        "npu_swiglu_quant": [Call((wide,), {"smooth_scales": r.scales(1, 128), "quant_mode": 1})],
        "npu_rotate_quant": [Call((x, r.floats(32, 32)))],
        "npu_kronecker_quant": [Call((r.floats(4, 16, 64), r.floats(16, 16), r.floats(64, 64), 0.9))],
        "npu_quant_conv2d": [
            Call((r.int8(1, 16, 8, 8), r.int8(16, 16, 3, 3), r.scales(16)), {"output_dtype": torch.float16}),
        ],
        "npu_gelu_quant": [Call((x,), product="950")],
        "npu_dynamic_block_quant": [Call((x,))],
        "npu_grouped_dynamic_block_quant": [Call((brain, halves), product="950")],
        "npu_dynamic_mx_quant": [Call((brain,), product="950"), Call((brain,), {"dst_type": _E4M3}, product="950")],
        "npu_dynamic_mx_quant_with_dual_axis": [Call((brain,), product="950")],
        "npu_dynamic_block_mx_quant": [Call((brain,), product="950")],
        "npu_dynamic_dual_level_mx_quant": [Call((r.floats(8, 1024),), product="950")],
        "npu_grouped_dynamic_mx_quant": [Call((brain, halves), product="950")],
        "npu_anti_mx_quant": [Call((small.to(element), r.e8m0(64, 2, 2)), product="950")],
        "npu_swiglu_mx_quant": [Call((wide_brain,), {"dst_type": _FLOAT4}, product="950")],
        "npu_swiglu_mx_quant_with_dual_axis": [Call((wide_brain,), product="950")],
        "_npu_swiglu_backward_mx_quant_with_dual_axis": [Call((wide_brain, brain), product="950")],
        "npu_quant_max": [Call((x.float(), torch.full((1,), 8.0)), product="950")],
    }
