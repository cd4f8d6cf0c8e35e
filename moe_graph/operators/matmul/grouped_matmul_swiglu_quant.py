"""`npu_grouped_matmul_swiglu_quant(x, weight, ...)` and `_v2`: the experts' first product, swiglu, and int8 again, in one.

    x [M, K] int8, or of v2 int4 packed in int32 [M, K / 8], with weights of int4, weight_scale [E, N] and no assist
    weight [E, K, N] int8, or int4 packed in int32 [E, K, N / 8] (v2: a list of one)   x_scale [M] float32
    weight_scale  [E, N] float32; of int4 also [E, groups of K, N], and int64 or uint64 with float32 in the low 32 bits
    group_list    [E] int64: where each group's rows end; v2 with group_list_type 1: how many it has
    assist        [E, N] float32, for int4 weights (bias; v2: weight_assist_matrix, a list of one): 8 * the sum of the scaled columns
    smooth_scale  [E, N / 2] or [E] (v2)

    c = x @ weight * weight_scale * x_scale     s = silu(left half) * right half * smooth_scale
    scale = max |s| / 127 of each row           y = round(s / scale) int8 [M, N / 2], scale [M] float32

Sources: npu_grouped_matmul_swiglu_quant_v2's page in the torch_npu documentation; the document of aclnnGroupedMatmulSwigluQuantWeightNZ
(ops-transformer). v1's third result is no value of the operator's; it is 0. Sums are exact, the rest float32. Rows beyond the groups are 0
here and not written on a device. Not served: v1's offset. The types of Ascend 950: `grouped_matmul_swiglu_float8`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType, Planned, Tensors
from moe_graph.operators.matmul import grouped_matmul_swiglu_float8, scaled_operands
from moe_graph.operators.matmul.grouped_rows import CUMSUM, scaled, segments, weights
from moe_graph.operators.quantization import int4
from moe_graph.operators.quantization.int8 import dynamic_int8

_check = Checks("npu_grouped_matmul_swiglu_quant")
_FLOAT, _INT8 = 6, 1


def compute(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    x_scale: Tensor,
    group_list: Tensor,
    kind: int,
    assist: Tensor | None = None,
    smooth_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y and scale."""
    x_is_int4 = x.dtype == torch.int32
    if x_is_int4:
        _check.dtype("weight", weight, (torch.int32, torch.uint8))
        _check.absent("weight_assist_matrix", assist, "with x of int4")
        x = int4.unpacked(x)
    if x.dtype != torch.int8:
        raise NotImplementedError(f"npu_grouped_matmul_swiglu_quant: x must be int8 or packed int4, got {x.dtype}")
    matrices, is_int4 = weights(_check, "weight", weight, x.shape[1])
    _check.size(x_scale.shape[0] == x.shape[0], "x_scale", f"of M = {x.shape[0]} rows", x_scale)
    values = torch.zeros((len(x), matrices.shape[-1] // 2), dtype=torch.float32)
    for group, rows in segments(_check, group_list, kind, len(matrices), len(x)):
        extra = None if assist is None else assist[group]
        c = scaled(x[rows], matrices[group], weight_scale[group], extra, is_int4 and not x_is_int4) * x_scale[
            rows
        ].float().reshape(-1, 1)
        left, right = c.chunk(2, -1)
        s = torch.nn.functional.silu(left) * right
        values[rows] = s if smooth_scale is None else s * smooth_scale[group].float()
    y, scale = dynamic_int8(values)
    return y, scale.squeeze(-1)


def grouped_matmul_swiglu_quant(
    x: Tensor,
    weight: Tensor,
    group_list: Tensor,
    weight_scale: Tensor,
    x_scale: Tensor,
    *,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, scale, and a third result without a meaning. bias is the assist of int4 weights; of int8 ones, as offset, it must be None."""
    if offset is not None:
        raise NotImplementedError("npu_grouped_matmul_swiglu_quant: offset must be None, it is not served")
    if bias is not None and weight.dtype == torch.int8:
        raise NotImplementedError("npu_grouped_matmul_swiglu_quant: bias must be None of int8 weights")
    y, scale = compute(x, weight, weight_scale, x_scale, group_list, CUMSUM, bias)
    return y, scale, torch.zeros((), dtype=torch.float32)


def _only(name: str, tensors: Sequence[Tensor] | None) -> Tensor | None:
    if tensors is not None and len(tensors) != 1:
        _check.refuse(name, "a list of one tensor", f"{len(tensors)} tensors")
    return tensors[0] if tensors else None


def grouped_matmul_swiglu_quant_v2(
    x: Tensor,
    weight: Sequence[Tensor],
    weight_scale: Sequence[Tensor],
    x_scale: Tensor,
    group_list: Tensor,
    *,
    smooth_scale: Tensor | None = None,
    weight_assist_matrix: Sequence[Tensor] | None = None,
    bias: Tensor | None = None,
    dequant_mode: int | None = 0,
    dequant_dtype: int | None = _FLOAT,
    quant_mode: int | None = 0,
    quant_dtype: int | None = _INT8,
    group_list_type: int | None = 0,
    tuning_config: Sequence[int] | None = None,
    x_dtype: int | None = None,
    weight_dtype: int | None = None,
    weight_scale_dtype: int | None = None,
    x_scale_dtype: int | None = None,
) -> tuple[Tensor, Tensor]:
    """y and scale. Raises NotImplementedError, naming the argument, for a form that is not served."""
    if bias is not None:
        raise NotImplementedError("npu_grouped_matmul_swiglu_quant_v2: bias must be None, it is not served")
    operands = (("x_dtype", x, x_dtype), ("weight_dtype", weight[0], weight_dtype))
    if any(
        scaled_operands.name_of(f"npu_grouped_matmul_swiglu_quant_v2: {name}", tensor, number)
        for name, tensor, number in operands
    ):
        _without_assist(smooth_scale, weight_assist_matrix)
        if dequant_dtype not in (None, 1, 5, _FLOAT, 15):
            raise ValueError(
                "npu_grouped_matmul_swiglu_quant_v2: dequant_dtype must be float32, float16 or bfloat16, got the dtype with "
                f"number {dequant_dtype}"
            )
        modes, kind = (dequant_mode or 0, quant_mode or 0), group_list_type or 0
        types = (_INT8 if quant_dtype is None else quant_dtype, x_dtype, weight_dtype)
        return grouped_matmul_swiglu_float8.eager(x, weight, weight_scale, x_scale, group_list, kind, modes, *types)
    if quant_dtype not in (None, _INT8) or quant_mode not in (None, 0):
        raise NotImplementedError(
            f"npu_grouped_matmul_swiglu_quant_v2: quant_dtype must be int8 and quant_mode 0 of int8 x, got {quant_dtype} and {quant_mode}"
        )
    matrices, scales = _only("weight", weight), _only("weight_scale", weight_scale)
    assert matrices is not None and scales is not None
    assist = _only("weight_assist_matrix", weight_assist_matrix)
    return compute(x, matrices, scales, x_scale, group_list, group_list_type or 0, assist, smooth_scale)


def _without_assist(smooth_scale: Tensor | None, assist: Sequence[Tensor] | None) -> None:
    for name, value in (("smooth_scale", smooth_scale), ("weight_assist_matrix", assist)):
        if value is not None:
            raise NotImplementedError(
                f"npu_grouped_matmul_swiglu_quant_v2: {name} must be None of x of float8, it is not served"
            )


def _ge_grouped_matmul_swiglu_quant_v2(
    x: Tensor,
    x_scale: Tensor,
    group_list: Tensor,
    weight: Tensors,
    weight_scale: Tensors,
    weight_assist_matrix: Tensors,
    bias: Tensor | None = None,
    smooth_scale: Tensor | None = None,
    *,
    dequant_mode: int = 0,
    dequant_dtype: GeType = 0,  # type: ignore[assignment]
    quant_mode: int = 0,
    quant_dtype: GeType = 1,  # type: ignore[assignment]
    transpose_weight: bool = False,
    group_list_type: int = 0,
    tuning_config: list | tuple[int, ...] = (0,),
    node: Planned,
) -> tuple[Tensor, Tensor]:
    """GE GroupedMatmulSwigluQuantV2. A matrix that is left out comes as one tensor of no elements."""
    if transpose_weight or bias is not None:
        raise NotImplementedError("GroupedMatmulSwigluQuantV2: transpose_weight must be false and bias not fed")
    names = [scaled_operands.ge_name(node, at, tensor) for at, tensor in ((0, x), (3, weight[0]))]
    if any(names):
        _without_assist(smooth_scale, [matrix for matrix in weight_assist_matrix if matrix.numel()] or None)
        if quant_dtype.packed:
            raise NotImplementedError(
                f"GroupedMatmulSwigluQuantV2: quant_dtype must be of eight bits, got {quant_dtype.name}"
            )
        modes = (dequant_mode, quant_mode)
        given = (weight_scale, x_scale, group_list, group_list_type, modes, quant_dtype.name)
        return grouped_matmul_swiglu_float8.compute(x, names[0], weight, names[1], *given)
    if quant_dtype.name != "DT_INT8":
        raise NotImplementedError(f"GroupedMatmulSwigluQuantV2: quant_dtype must be DT_INT8, got {quant_dtype.name}")
    assist = [matrix for matrix in weight_assist_matrix if matrix.numel()]
    return grouped_matmul_swiglu_quant_v2(
        int4.packed(int4.of_carrier(x)) if x.dtype == torch.uint8 else x,
        weight,
        weight_scale,
        x_scale,
        group_list,
        smooth_scale=smooth_scale,
        weight_assist_matrix=assist or None,
        quant_mode=quant_mode,
        group_list_type=group_list_type,
    )


OPERATOR = of_torch_npu("npu_grouped_matmul_swiglu_quant", grouped_matmul_swiglu_quant)
V2_OPERATOR = of_torch_npu(
    "npu_grouped_matmul_swiglu_quant_v2",
    grouped_matmul_swiglu_quant_v2,
    ge=[GeKernel("GroupedMatmulSwigluQuantV2", _ge_grouped_matmul_swiglu_quant_v2)],
)
