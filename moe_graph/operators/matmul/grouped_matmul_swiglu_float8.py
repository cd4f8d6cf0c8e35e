"""`npu_grouped_matmul_swiglu_quant_v2` of float8, hifloat8 and float4, as Ascend 950 has it.

    x [M, K], weight one [E, K, N] or E of [K, N]: float8_e4m3fn, float8_e5m2; hifloat8, float4_e2m1 (bytes and x_dtype, weight_dtype)
    MX (dequant_mode 2, quant_mode 2)   x_scale [M, ceil(K / 64), 2], weight_scale [E, ceil(K / 64), N, 2] float8_e8m0
        c = (x * x_scale) @ (weight * weight_scale)      s = silu(left half) * right half
        y, scale = blocks of 32 of s, as npu_dynamic_mx_quant with scale_alg 0: float8 or float4_e2m1 [M, N / 2], float8_e8m0
        [M, ceil(N / 128), 2]
    per token (0, 0)                    x_scale [M], weight_scale [E, N] float32, bfloat16
        c = x @ weight * x_scale * weight_scale; scale = max |s| / the type's largest value, y = s / scale; float8 or hifloat8

Source: the operator's page in the torch_npu documentation. Products are nearly exact, the rest is float32; s is rounded once, to y. Rows
beyond the groups are 0 here and not written on a device. Not served: smooth_scale, float4_e1m2; in graphs results of float4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.matmul import scaled_operands
from moe_graph.operators.matmul.grouped_rows import of_nz, segments
from moe_graph.operators.quantization import destination, hifloat8, mx

_check = Checks("npu_grouped_matmul_swiglu_quant_v2")
MX, PER_TOKEN = 2, 0
_FLOAT4X2 = getattr(torch, "float4_e2m1fn_x2", torch.uint8)


def _matrices(weight: Sequence[Tensor]) -> list[Tensor]:
    """[K, N] of each expert, which may come in the shape of the format NZ."""
    if len(weight) > 1:
        return list(weight)
    whole = of_nz(weight[0])
    _check.rank("weight", whole, (3,), "[E, K, N]")
    return list(whole)


def compute(
    x: Tensor,
    x_name: str,
    weight: Sequence[Tensor],
    weight_name: str,
    weight_scale: Sequence[Tensor],
    x_scale: Tensor,
    group_list: Tensor,
    kind: int,
    modes: tuple[int, int],
    quant_name: str,
) -> tuple[Tensor, Tensor]:
    """y, one element in each place, and scale. Operands are carried as `scaled_operands` has it; quant_name: y's type in GE."""
    mx.only_on_950("npu_grouped_matmul_swiglu_quant_v2 of float8, hifloat8 and float4")
    if modes not in ((MX, MX), (PER_TOKEN, PER_TOKEN)):
        raise NotImplementedError(
            f"npu_grouped_matmul_swiglu_quant_v2: dequant_mode and quant_mode must be 0 or 2, both, got {modes}"
        )
    matrices = _matrices(weight)
    scales = list(weight_scale[0]) if len(weight_scale) == 1 and len(weight) == 1 else list(weight_scale)
    width = matrices[0].shape[-1]
    values = torch.zeros((len(x), width // 2), dtype=torch.float32)
    for group, rows in segments(_check, group_list, kind, len(matrices), len(x)):
        if modes[0] == MX:
            c = scaled_operands.block_product(
                x[rows], x_name, x_scale[rows], matrices[group], weight_name, scales[group]
            )
        else:
            left = scaled_operands.values(x[rows], x_name)
            sums = (left @ scaled_operands.values(matrices[group], weight_name)).float()
            c = sums * scales[group].float() * x_scale[rows].float().reshape(-1, 1)
        act, gate = c.chunk(2, -1)
        values[rows] = torch.nn.functional.silu(act) * gate
    if modes[1] == MX:
        form = mx.of_name("npu_grouped_matmul_swiglu_quant_v2: quant_dtype", quant_name, (mx.E2M1, *mx.FLOAT8))
        elements, codes = mx.quantized(values, -1, form)
        return elements, mx.as_e8m0(mx.in_pairs(codes, -1))
    maximum = {form.ge: form.maximum for form in mx.FLOAT8} | {hifloat8.GE_NAME: hifloat8.MAXIMUM}
    if quant_name not in maximum:
        _check.refuse("quant_dtype", f"one of {', '.join(maximum)} per token", quant_name or "int8")
    scale = values.abs().amax(-1) / maximum[quant_name]
    y = values / scale.masked_fill(scale == 0, 1).unsqueeze(-1)
    return destination.rounded(y, maximum[quant_name]), scale


def eager(
    x: Tensor,
    weight: Sequence[Tensor],
    weight_scale: Sequence[Tensor],
    x_scale: Tensor,
    group_list: Tensor,
    kind: int,
    modes: tuple[int, int],
    quant_dtype: int,
    x_dtype: int | None,
    weight_dtype: int | None,
) -> tuple[Tensor, Tensor]:
    """y and scale as torch_npu hands them over."""
    x_name = scaled_operands.name_of("npu_grouped_matmul_swiglu_quant_v2: x_dtype", x, x_dtype)
    weight_name = scaled_operands.name_of("npu_grouped_matmul_swiglu_quant_v2: weight_dtype", weight[0], weight_dtype)
    quant_name = scaled_operands.name_of("npu_grouped_matmul_swiglu_quant_v2: quant_dtype", x, quant_dtype)
    whole = [scaled_operands.carried(matrix, weight_name) for matrix in weight]
    left = scaled_operands.carried(x, x_name)
    y, scale = compute(left, x_name, whole, weight_name, weight_scale, x_scale, group_list, kind, modes, quant_name)
    if quant_name == scaled_operands.FLOAT4:
        y = mx.stored(y, mx.E2M1).view(_FLOAT4X2)
    return y, scale
