"""`npu_quant_matmul(x1, x2, scale, *, offset, pertoken_scale, bias, output_dtype, ...)`: products of integers and of float8, scaled back.

    x1 [..., M, K], x2 [..., K, N] int8; or int32, eight int4 in each along the last dimension   scale [1] or [N] float32, bfloat16, or
    int64 of npu_trans_quant_param   pertoken_scale [M] float32   bias [N] or [batch, 1, N]   offset [1] or [N] float32

    int32 bias:            y = (x1 @ x2 + bias) * scale * pertoken_scale + offset
    floating point bias:   y = x1 @ x2 * scale * pertoken_scale + bias

    output_dtype int8 (None), float16, bfloat16; int32: x1 @ x2 + bias, without scale

    x1 [M, K] int8 with x2 of int4, scale [groups of K, N] of packed float32, pertoken_scale [M, 1], group_sizes [0, 0, K / groups]:
    y = ((x1 - 8) @ x2 * scale, summed over the groups, + offset) * pertoken_scale; offset is 8 * the sum of x2's scaled columns

Ascend 950 has x1 and x2 of float8_e4m3fn, float8_e5m2, hifloat8 (uint8, x1_dtype, x2_dtype), too, to float16, bfloat16 or float32:

    y = x1 @ x2 * scale * pertoken_scale + bias       scale [1], [N], pertoken_scale [1], [M], bias float32; of packed scales
                                                      y = (x1 @ x2 + bias) * scale
    y = (x1 * pertoken_scale) @ (x2 * scale) + bias   scales of blocks, as `scaled_operands` says: float8_e8m0 (MX; also of float4_e2m1, or
                                                      float8_e4m3fn by float4), or float32 (G-B, also int8 on other products, and B-B)

group_sizes may name the blocks: [1, 1, 32], [1, 128, 128], [128, 128, 128]; the shapes of the scales tell them, too. Sources: the
operator's page in the torch_npu documentation, the documents of aclnnQuantMatmulV4 and V5 (ops-nn); int8 with int4: op-plugin's test.
Sums of integers are exact, those of
float8 nearly; scaling is float32, rounded once. Not served: y_scale, float4 packed in float32, results of eight bits from float8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType, Planned
from moe_graph.operators.matmul import scaled_operands
from moe_graph.operators.matmul.products import exact_product
from moe_graph.operators.quantization import int4, mx
from moe_graph.operators.quantization.int8 import INT8_MAX, INT8_MIN
from moe_graph.operators.quantization.trans_quant_param import unpacked

_DTYPES = (torch.int8, torch.int32, torch.float16, torch.bfloat16)
_FLOAT_RESULTS = (torch.float16, torch.bfloat16, torch.float32)
_MODES = ([1, 1, 32], [1, 128, 128], [128, 128, 128])


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
    if y_scale is not None:
        raise NotImplementedError("npu_quant_matmul: y_scale must be None, it is not served")
    names = tuple(
        scaled_operands.name_of(f"npu_quant_matmul: {argument}", x, number)
        for argument, x, number in (("x1_dtype", x1, x1_dtype), ("x2_dtype", x2, x2_dtype))
    )
    for argument, number in (("scale_dtype", scale_dtype), ("pertoken_scale_dtype", pertoken_scale_dtype)):
        if number not in (None, scaled_operands.E8M0_NUMBER):
            raise NotImplementedError(
                f"npu_quant_matmul: {argument} must be None or float8_e8m0fnu (293), got {number}"
            )
    of_int4 = x1.dtype == torch.int8 and x2.dtype == torch.int32
    if not of_int4:
        check_group_sizes("npu_quant_matmul", group_sizes, pertoken_scale)
    dtype = torch.int8 if output_dtype is None else dtypes.from_number(output_dtype)
    if dtype not in (_FLOAT_RESULTS if any(names) else _DTYPES):
        raise NotImplementedError(
            f"npu_quant_matmul: output_dtype must be one of {_FLOAT_RESULTS if any(names) else _DTYPES}, got {output_dtype}"
        )
    assert dtype is not None
    if of_int4:
        return _by_int4_weights(x1, x2, scale, offset, pertoken_scale, bias, group_sizes, dtype)
    if any(names) or _has_blocks(x1, scale, pertoken_scale):
        left, right = scaled_operands.carried(x1, names[0]), scaled_operands.carried(x2, names[1])
        return compute_float8(left, names[0], right, names[1], scale, pertoken_scale, bias, dtype)
    return compute(x1, x2, scale, offset, pertoken_scale, bias, dtype)


def check_group_sizes(operator: str, group_sizes: Sequence[int] | None, pertoken_scale: Tensor | None) -> None:
    """Raise ValueError for blocks that no mode has, or without scales of blocks; 0 leaves a size open."""
    if group_sizes is None or not any(group_sizes):
        return
    if pertoken_scale is None or pertoken_scale.dim() < 2:
        raise ValueError(f"{operator}: group_sizes must be 0 or None without scales of blocks, got {list(group_sizes)}")
    given = list(group_sizes)
    if len(given) != 3 or not any(all(g in (0, m) for g, m in zip(given, mode)) for mode in _MODES):
        raise ValueError(f"{operator}: group_sizes must be one of {_MODES}, got {given}")


def of_group_size(group_size: int) -> list[int]:
    """GE's attribute group_size as group_sizes: three sizes of 16 bits."""
    return [group_size >> 32 & 0xFFFF, group_size >> 16 & 0xFFFF, group_size & 0xFFFF]


def _has_blocks(x1: Tensor, scale: Tensor, pertoken_scale: Tensor | None) -> bool:
    """Are the scales of blocks of int8?"""
    return x1.dtype == torch.int8 and scale.dim() >= 2 and pertoken_scale is not None and pertoken_scale.dim() >= 2


def compute_float8(
    x1: Tensor,
    name1: str,
    x2: Tensor,
    name2: str,
    scale: Tensor,
    pertoken_scale: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The product of carried elements, whose types have these names in GE ("" for int8)."""
    if name1 or name2:
        mx.only_on_950("npu_quant_matmul of float8, hifloat8 and float4")
    if pertoken_scale is not None and pertoken_scale.dim() >= 2:
        return scaled_operands.block_product(x1, name1, pertoken_scale, x2, name2, scale, bias).to(dtype)
    if scaled_operands.FLOAT4 in (name1, name2) or not (name1 and name2):
        raise ValueError("npu_quant_matmul: float4 needs scales of blocks, and float8 two operands of float8")
    sums = (scaled_operands.values(x1, name1) @ scaled_operands.values(x2, name2)).float()
    factors, packed_offset = unpacked(scale)
    if packed_offset is not None and bias is not None:
        sums, bias = sums + bias.float(), None
    y = sums * factors
    if pertoken_scale is not None:
        y = y * pertoken_scale.float().unsqueeze(-1)
    return (y if bias is None else y + bias.float()).to(dtype)


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


def _by_int4_weights(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    pertoken_scale: Tensor | None,
    bias: Tensor | None,
    group_sizes: Sequence[int] | None,
    dtype: torch.dtype,
) -> Tensor:
    """int8 x1 [M, K] by weights of int4, as a device multiplies them: the high and the low four bits of x1 apart."""
    weight = _weight_of_int4(x1, x2)
    given, parts = list(group_sizes or (0, 0, 0)), len(scale) if scale.dim() == 2 else 1
    size = weight.shape[0] // parts
    if x1.dim() != 2 or bias is not None or weight.shape[0] != x1.shape[1] or given not in ([0, 0, 0], [0, 0, size]):
        raise ValueError(
            "npu_quant_matmul: int8 x1 with int4 x2 must be [M, K] and [K, N], without bias, "
            "with group_sizes 0, 0 and K / the rows of scale, "
            f"got {tuple(x1.shape)}, {tuple(weight.shape)}, {given} and scale {tuple(scale.shape)}"
        )
    factors = unpacked(scale)[0].reshape(parts, 1, -1)
    moved = (x1.to(torch.int32) - 8).view(len(x1), parts, size).transpose(0, 1)
    y = (exact_product(moved, weight.view(parts, size, -1)).float() * factors).sum(0)
    y = y if offset is None else y + offset.float()
    return (y if pertoken_scale is None else y * pertoken_scale.float().view(-1, 1)).to(dtype)


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


def _ge_quant_batch_matmul_v4(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    y_scale: Tensor | None = None,
    x1_offset: Tensor | None = None,
    x2_offset: Tensor | None = None,
    y_offset: Tensor | None = None,
    x2_table: Tensor | None = None,
    *,
    dtype: GeType,
    compute_type: int = -1,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    group_size: int = 0,
    node: Planned,
) -> Tensor:
    """GE QuantBatchMatmulV4, to which torchair lowers on Ascend 950."""
    absent = {"y_scale": y_scale, "x1_offset": x1_offset, "y_offset": y_offset, "x2_table": x2_table}
    given = [name for name, value in absent.items() if value is not None]
    if given or x2_scale is None:
        raise NotImplementedError(
            f"QuantBatchMatmulV4: x2_scale must be given and {', '.join(absent)} not, got {given}"
        )
    check_group_sizes("npu_quant_matmul", of_group_size(group_size), x1_scale)
    left, x1_scale = turned(x1, x1_scale, transpose_x1)
    right, scale = turned(x2, x2_scale, transpose_x2)
    names = scaled_operands.ge_name(node, 0, x1), scaled_operands.ge_name(node, 1, x2)
    if scaled_operands.FLOAT4 == names[1] and right.shape[-2] * 2 == left.shape[-1]:
        right = _unpacked_behind(right, columns=scale.shape[-2])
    if any(names) or _has_blocks(x1, x2_scale, x1_scale):
        return compute_float8(left, names[0], right, names[1], scale, x1_scale, bias, dtype.torch)
    return compute(int4.of_carrier(left), int4.of_carrier(right), x2_scale, x2_offset, x1_scale, bias, dtype.torch)


def turned(x: Tensor, scale: Any, transposed: bool) -> tuple[Tensor, Any]:
    """A transposed operand as it is meant; scales of its blocks lie as it does."""
    if not transposed:
        return x, scale
    if scale is not None and scale.dim() >= 2:
        scale = scale.transpose(-2, -3) if scaled_operands.is_e8m0(scale, None) else scale.transpose(-1, -2)
    return x.transpose(-1, -2), scale


def _unpacked_behind(x: Tensor, columns: int) -> Tensor:
    """float4 of a weight [K, N] that torchair handed on as [K / 2, N], in bytes, or [K / 2, 2 N], unpacked behind its transposition: the
    two elements of a byte are of two rows."""
    if x.shape[-1] == columns:
        return mx.elements_of(x.transpose(-1, -2), mx.E2M1).transpose(-1, -2)
    return x.unflatten(-1, (-1, 2)).movedim(-1, -2).flatten(-3, -2)


OPERATOR = of_torch_npu(
    "npu_quant_matmul",
    quant_matmul,
    ge=[
        GeKernel("QuantBatchMatmulV3", _ge_quant_batch_matmul_v3),
        GeKernel("QuantBatchMatmulV4", _ge_quant_batch_matmul_v4),
    ],
)
