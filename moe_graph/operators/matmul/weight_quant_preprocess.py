"""`npu_weight_quant_preprocess(weight, weight_scale, x_dtype, weight_dtype, weight_scale_dtype, ...)`: weights in the format of a product.

    Ascend 950, x_dtype float8_e4m3fn, weight_dtype float4_e2m1fn_x2, both scales float8_e8m0fnu (MX A8W4):
    weight [K / 2, N] or [E, K / 2, N] and weight_scale [K / 64, N, 2] or [E, ...], both transposed in memory
    -> weight, weight_scale, weight_offset, bias, with the values, shapes and strides of what came; what was left out is empty

Source: op-plugin's C++, fake implementation and test. The device stores the weight in the format FRACTAL_NZ_C0_16, which its values do not
tell; here the format stays that of the input.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.matmul.scaled_operands import E8M0_NUMBER
from moe_graph.operators.quantization import mx

_NAME = "npu_weight_quant_preprocess"
_E4M3, _FLOAT4 = (24, 292), 296


def weight_quant_preprocess(
    weight: Tensor,
    weight_scale: Tensor,
    x_dtype: int,
    weight_dtype: int,
    weight_scale_dtype: int,
    weight_offset: Tensor | None = None,
    bias: Tensor | None = None,
    x_scale_dtype: int | None = None,
    k_group_size: int | None = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Copies of the four. Raises ValueError for types or strides that the adapter refuses."""
    mx.only_on_950(_NAME)
    given = (x_dtype, weight_dtype, weight_scale_dtype, x_scale_dtype)
    if x_dtype not in _E4M3 or given[1:] != (_FLOAT4, E8M0_NUMBER, E8M0_NUMBER) or weight.dim() not in (2, 3):
        named = ", ".join("None" if number is None else dtypes.name(number) for number in given)
        raise ValueError(
            f"{_NAME}: x, weight and the scales must be float8_e4m3fn, float4_e2m1fn_x2 and float8_e8m0fnu, weight of 2 or 3 dimensions, "
            f"got {named} and {weight.dim()} dimensions"
        )
    first = weight.dim() - 2
    for name, tensor, rank in (("weight", weight, first + 2), ("weight_scale", weight_scale, first + 3)):
        if tensor.dim() != rank or tensor.stride(first + 1) != tensor.stride(first) * tensor.shape[first]:
            raise ValueError(
                f"{_NAME}: {name} must be of {rank} dimensions and transposed in memory, got shape {tuple(tensor.shape)} and strides "
                f"{tensor.stride()}"
            )
    offset, added = (weight.new_empty(0) if one is None else one.clone() for one in (weight_offset, bias))
    return weight.clone(), weight_scale.clone(), offset, added


OPERATOR = of_torch_npu(_NAME, weight_quant_preprocess)
