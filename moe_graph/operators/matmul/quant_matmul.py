"""`npu_quant_matmul(x1, x2, scale, *, offset, pertoken_scale, bias, output_dtype, ...)`: int8 or int4 products, scaled back.

    x1 [..., M, K], x2 [..., K, N] int8; or int32, eight int4 in each along the last dimension   scale [1] or [N] float32, bfloat16, or
    int64 of npu_trans_quant_param   pertoken_scale [M] float32   bias [N] or [batch, 1, N]   offset [1] or [N] float32

    int32 bias:            y = (x1 @ x2 + bias) * scale * pertoken_scale + offset
    floating point bias:   y = x1 @ x2 * scale * pertoken_scale + bias

    output_dtype int8 (None), float16, bfloat16; int32: x1 @ x2 + bias, without scale

Sources: the operator's page in the torch_npu documentation, the document of aclnnQuantMatmulV4 (ops-nn). Sums are exact, scaling is
float32, rounded once. Not served: float8, hifloat8, float4 and block scales (Ascend 950), group_sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import int4
from moe_graph.operators.quantization.int8 import INT8_MAX, INT8_MIN
from moe_graph.operators.quantization.trans_quant_param import unpacked

_DTYPES = (torch.int8, torch.int32, torch.float16, torch.bfloat16)
# Sums of int8 products stay whole numbers that float64 holds, whatever K is.
_EXACT = torch.float64


def exact_product(x: Tensor, weight: Tensor) -> Tensor:
    """int8 [..., M, K] @ int8 [..., K, N] -> the exact sums, int32."""
    return (x.to(_EXACT) @ weight.to(_EXACT)).to(torch.int32)


def quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    scale_dtype: int | None = None,
    group_sizes: Sequence[int] | None = None,
    y_scale: Tensor | None = None,
) -> Tensor:
    """As the module's document says. Raises NotImplementedError, naming the argument, for a form it does not serve."""
    for name, value in (
        ("x1_dtype", x1_dtype),
        ("x2_dtype", x2_dtype),
        ("pertoken_scale_dtype", pertoken_scale_dtype),
        ("scale_dtype", scale_dtype),
        ("y_scale", y_scale),
    ):
        if value is not None:
            raise NotImplementedError(f"npu_quant_matmul: {name} must be None, the types of Ascend 950 are not served")
    if any(group_sizes or ()):
        raise NotImplementedError(f"npu_quant_matmul: group_sizes must be 0 or None, got {list(group_sizes or ())}")
    dtype = torch.int8 if output_dtype is None else dtypes.from_number(output_dtype)
    if dtype not in _DTYPES:
        raise NotImplementedError(f"npu_quant_matmul: output_dtype must be one of {_DTYPES}, got {output_dtype}")
    assert dtype is not None
    return compute(x1, x2, scale, offset, pertoken_scale, bias, dtype)


def compute(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    pertoken_scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The product in `dtype`."""
    if x1.dtype == torch.int32:
        x1, x2 = int4.unpacked(x1), _weight_of_int4(x1, x2)
    if x1.dtype != torch.int8 or x2.dtype != torch.int8:
        raise NotImplementedError(
            f"npu_quant_matmul: x1 and x2 must be int8, or int32 of int4, got {x1.dtype} and {x2.dtype}"
        )
    sums = exact_product(x1, x2)
    if bias is not None and bias.dtype == torch.int32:
        sums, bias = sums + bias, None
    if dtype == torch.int32:
        return sums
    factors, packed_offset = unpacked(scale)
    y = sums.float() * factors
    if pertoken_scale is not None:
        y = y * pertoken_scale.float().unsqueeze(-1)
    if bias is not None:
        y = y + bias.float()
    shift = packed_offset if offset is None else offset.float()
    if dtype != torch.int8:
        return y.to(dtype)
    return (y if shift is None else y + shift).round().clamp(INT8_MIN, INT8_MAX).to(torch.int8)


def _weight_of_int4(x1: Tensor, x2: Tensor) -> Tensor:
    """x2 of int4, whose packed dimension is the one that lies together in memory: N, or K of a transposed one."""
    if x2.shape[-2] == x1.shape[-1] and x2.stride(-2) == 1:
        return int4.unpacked(x2.transpose(-1, -2)).transpose(-1, -2)
    return int4.unpacked(x2)


def _ge_quant_batch_matmul_v3(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    *,
    dtype: GeType,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
) -> Tensor:
    left = x1.transpose(-1, -2) if transpose_x1 else x1
    right = x2.transpose(-1, -2) if transpose_x2 else x2
    return compute(int4.of_carrier(left), int4.of_carrier(right), scale, offset, pertoken_scale, bias, dtype.torch)


OPERATOR = of_torch_npu(
    "npu_quant_matmul", quant_matmul, ge=[GeKernel("QuantBatchMatmulV3", _ge_quant_batch_matmul_v3)]
)
