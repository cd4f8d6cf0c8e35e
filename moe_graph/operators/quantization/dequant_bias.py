"""`npu_dequant_bias(x, weight_scale, activation_scale, bias, *, output_dtype=None)`: int32 sums of a product, scaled back.

    x [M, N] int32   weight_scale [N] float32, bfloat16   activation_scale [M] float32 or None   bias [N] or None

    int32 bias            y = (x + bias) * weight_scale * activation_scale
    floating point bias   y = x * weight_scale * activation_scale + bias

    y [M, N] float16 (None) or bfloat16

Source: the document of aclnnDequantBias (ops-nn, quant/dequant_bias). Computed in float32, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType

_check = Checks("npu_dequant_bias")


def dequant_bias(
    x: Tensor,
    weight_scale: Tensor,
    activation_scale: Tensor | None,
    bias: Tensor | None,
    *,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """As the module's document says. Raises ValueError for another dtype of x or of the result."""
    dtype = output_dtype or torch.float16
    _check.dtype("x", x, (torch.int32,))
    _check.value("output_dtype", dtype, (torch.float16, torch.bfloat16))
    if bias is not None and bias.dtype == torch.int32:
        x, bias = x + bias, None
    values = x.float() * weight_scale.float()
    if activation_scale is not None:
        values = values * activation_scale.float().reshape(-1, 1)
    return (values if bias is None else values + bias.float()).to(dtype)


def _ge_dequant_bias(
    x: Tensor,
    weight_scale: Tensor,
    activate_scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    output_dtype: GeType,
) -> Tensor:
    """GE DequantBias."""
    return dequant_bias(x, weight_scale, activate_scale, bias, output_dtype=output_dtype.torch)


OPERATOR = of_torch_npu("npu_dequant_bias", dequant_bias, ge=[GeKernel("DequantBias", _ge_dequant_bias)])
