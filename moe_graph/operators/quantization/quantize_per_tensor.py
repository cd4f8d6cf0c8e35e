"""ATB's `_npu_quantize_per_tensor(x, scale, zero_point, y)`: y = round(x / scale) + zero_point, cut to int8, written to `y`.

    x float16, bfloat16   scale like x, broadcasting   zero_point int8, broadcasting, or of no elements   y int8 of x's shape

The name is torch_npu's; scale and zero_point may be of a channel each. Float32 inside, halves to even.
Source: op-plugin's C++ (QuantPerTensorAtb.cpp, AtbCommon) and test.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.quantization.int8 import to_int8

_check = Checks("_npu_quantize_per_tensor")
_MAX_RANK = 8


def quantize_per_tensor(x: Tensor, scale: Tensor, zero_point: Tensor, y: Tensor) -> None:
    """`y`, written to. Raises ValueError for tensors of more than 8 dimensions, as ATB does, and for shapes that do not fit."""
    for tensor in (x, scale, zero_point, y):
        if tensor.dim() > _MAX_RANK:
            raise ValueError(f"ATB tensor supports at most 8 dimensions, but got {tensor.dim()}")
    steps = (x.float() / scale.float()).round()
    quantized = to_int8(steps + zero_point.float() if zero_point.numel() else steps)
    if quantized.shape != y.shape:
        _check.refuse("y", f"of shape {tuple(quantized.shape)}", f"shape {tuple(y.shape)}")
    y.copy_(quantized)


OPERATOR = of_torch_npu("_npu_quantize_per_tensor", quantize_per_tensor, namespace="atb")
