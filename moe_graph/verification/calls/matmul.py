"""Calls of the products."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.verification.calls.inputs import Call, Inputs

_BFLOAT16, _E4M3, _FLOAT4, _E8M0 = 15, 24, 296, 293  # numbers of dtypes, for parameters of type int


def _words(scale: Tensor) -> Tensor:
    """float32 in the low half of int64."""
    return scale.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    x, weight = r.floats(8, 128), r.int8(128, 64)
    sizes, ends = torch.tensor([2, 0, 3, 3]), torch.tensor([2, 2, 5, 8])
    experts, wide = r.int8(4, 128, 256), r.int8(8, 128)
    rows = torch.tensor([2, 0, 1, 3, 3, 1, 0, 2])
    lora = (r.floats(8, 64), r.floats(2, 1, 128, 16), r.numbers(2, 8), r.floats(2, 1, 16, 64))
    given = {"group_list": ends, "split_item": 3, "group_type": 0}
    narrow = r.int4(4, 128, 32)
    element = getattr(torch, "float8_e4m3fn", torch.uint8)
    left, right = r.floats(8, 128).to(element), r.floats(128, 64).to(element)
    types = {"x1_scale_dtype": _E8M0, "x2_scale_dtype": _E8M0}
    blocks = {"x1_scale": r.e8m0(8, 2, 2), **types}
    packed = r.numbers(256, 2, 64, 64, dtype=torch.uint8).transpose(1, 2)
    codes = r.e8m0(2, 64, 2, 2).transpose(1, 2)
    matrices = r.floats(2, 8, 64, dtype=torch.float32)
    groups_added = (matrices, left, right, r.e8m0(4, 64, 2), torch.tensor([64, 128]))
    combined = {
        "scale": r.scales(4, 256),
        "pertoken_scale": r.scales(8),
        "logit": r.scales(8) * 50,
        "row_index": rows,
        "shared_input": r.floats(2, 256, dtype=torch.bfloat16),
        "output_bs": 4,
    }
    return {
        "npu_quant_matmul": [
            Call((r.int8(8, 128), weight, r.scales(64)), {"output_dtype": _BFLOAT16}),
            Call((r.int8(8, 128), weight, r.scales(64)), {"output_dtype": _BFLOAT16, "pertoken_scale": r.scales(8)}),
        ],
        "npu_quant_matmul_gelu": [
            Call((r.int8(8, 128), weight, r.scales(8), r.scales(64))),
            Call((r.int8(8, 128), weight, r.scales(8), r.scales(64)), {"approximate": "gelu_tanh"}),
        ],
        "npu_quant_matmul_dequant": [Call((x, r.int8(64, 128), r.scales(64)))],
        "npu_quant_grouped_matmul_dequant": [Call((x, r.int8(4, 64, 128), r.scales(4, 64), ends))],
        "npu_quant_matmul_reduce_sum": [
            Call(
                (r.int8(4, 8, 128), r.int8(4, 128, 64)),
                {"x1_scale": r.scales(4, 8), "x2_scale": r.scales(64).bfloat16()},
            )
        ],
        "npu_add_quant_matmul": [
            Call((r.floats(8, 64, dtype=torch.float32), left, right, r.e8m0(2, 64, 2)), blocks, product="950")
        ],
        "npu_add_quant_matmul_": [
            Call((r.floats(8, 64, dtype=torch.float32), left, right, r.e8m0(2, 64, 2)), blocks, product="950")
        ],
        "npu_add_quant_gmm": [Call(groups_added, {"x1_scale": r.e8m0(4, 8, 2), **types}, product="950")],
        "npu_add_quant_gmm_": [Call(groups_added, {"x1_scale": r.e8m0(4, 8, 2), **types}, product="950")],
        "npu_weight_quant_batchmatmul": [
            Call((x, weight, r.scales(64).half())),
            Call((x, r.int4(128, 8), r.scales(64).half())),
        ],
        "npu_weight_quant_preprocess": [
            Call((packed, codes, _E4M3, _FLOAT4, _E8M0), {"x_scale_dtype": _E8M0}, undefined=(2, 3), product="950")
        ],
        "npu_transpose_batchmatmul": [Call((r.floats(4, 8, 128), r.floats(4, 128, 64)))],
        "npu_transpose_quant_batchmatmul": [
            Call(
                (r.floats(8, 4, 512).to(element), r.floats(4, 512, 128).to(element), _BFLOAT16),
                {"x1_scale": r.scales(8), "x2_scale": r.scales(128)},
                product="950",
            )
        ],
        "npu_bmmV2": [Call((r.floats(2, 8, 64), r.floats(2, 64, 32), []))],
        "npu_bmm_v2_mat1_backward": [Call((r.floats(2, 8, 32), r.floats(2, 8, 64), r.floats(2, 64, 32), [2, 8, 64]))],
        "npu_bmm_v2_mat2_backward": [Call((r.floats(2, 8, 32), r.floats(2, 8, 64), r.floats(2, 64, 32), [2, 64, 32]))],
        "npu_linear": [Call((x, r.floats(64, 128), r.floats(64)))],
        "npu_linear_backward": [Call((r.floats(8, 64), x, r.floats(64, 128)))],
        "npu_fused_matmul": [
            Call((x, r.floats(128, 64)), {"x3": r.floats(8, 64), "fused_op_type": "add"}),
            Call((x, r.floats(128, 64)), {"fused_op_type": "gelu_tanh"}),
        ],
        "npu_ffn": [
            Call((x, r.floats(128, 256), r.floats(256, 128), "gelu")),
            Call((x, r.floats(128, 256), r.floats(256, 128), "relu")),
        ],
        "npu_grouped_matmul": [Call(([x], [r.floats(4, 128, 64)]), given)],
        "npu_grouped_matmul.List": [
            Call(([x], [r.floats(128, 64), r.floats(128, 64)]), {"group_list": [5, 8], "split_item": 3})
        ],
        "npu_grouped_matmul_finalize_routing": [Call((wide, experts, sizes), combined)],
        "npu_grouped_matmul_swiglu_quant": [Call((wide, experts, ends, r.scales(4, 256), r.scales(8)), undefined=(2,))],
        "npu_grouped_matmul_swiglu_quant_v2": [
            Call((wide, [experts], [r.scales(4, 256)], r.scales(8), ends)),
            Call(
                (wide, [narrow], [_words(r.scales(4, 256))], r.scales(8), ends),
                {"weight_assist_matrix": [r.floats(4, 256, dtype=torch.float32)]},
            ),
        ],
        "npu_batch_gather_matmul": [Call((x, *lora), {"scale": 0.5})],
        "npu_batch_gather_matmul_": [Call((x, *lora), {"scale": 0.5})],
    }
