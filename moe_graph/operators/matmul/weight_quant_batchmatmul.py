"""`npu_weight_quant_batchmatmul(x, weight, antiquant_scale, ...)`: a product with weights of int8 or int4.

    x [..., M, K] float16, bfloat16   weight [..., K, N] int8; or int32, eight int4 in each along N, or along K of a transposed one
    antiquant_scale, antiquant_offset  [1], [1, 1]; [N], [1, N]; with antiquant_group_size g [ceil(K / g), N]; the scale also int64 of
    npu_trans_quant_param, its offset then int32
    Ascend 950: weight float4_e2m1, eight in each float32 (npu_convert_weight_to_int4pack), antiquant_scale uint8 of float8_e8m0 [K / 32, N]
    with antiquant_group_size 32, no offset

    y = x @ ((weight + antiquant_offset) * antiquant_scale) + bias      like x, or int8 round(y * quant_scale + quant_offset)

    quant_scale, quant_offset [1], [N] float32; quant_scale also int64 of npu_trans_quant_param, which holds the offset

Sources: the operator's page in the torch_npu documentation, the document of aclnnWeightQuantBatchMatmulV2 (ops-nn). Float32 inside, rounded
once; inner_precise changes nothing. Not served: float8, hifloat8 and float4 two to a byte (Ascend 950).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.quantization import destination, int4, mx
from moe_graph.operators.quantization.int8 import INT8_MAX
from moe_graph.operators.quantization.trans_quant_param import unpacked

LEAST_GROUP = 32


def weight_quant_batchmatmul(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    antiquant_group_size: int = 0,
    inner_precise: int = 0,
    weight_dtype: int | None = None,
) -> Tensor:
    """As the module's document says. Raises ValueError for sizes that do not fit, NotImplementedError for types that are not served."""
    if weight_dtype is not None:
        raise NotImplementedError(
            "npu_weight_quant_batchmatmul: weight_dtype must be None, the types of Ascend 950 are not served"
        )
    if inner_precise not in (0, 1):
        raise ValueError(f"npu_weight_quant_batchmatmul: inner_precise must be 0 or 1, got {inner_precise}")
    if quant_offset is not None and quant_scale is None:
        raise ValueError("npu_weight_quant_batchmatmul: quant_offset must be None without quant_scale")
    group, is_float4 = antiquant_group_size, weight.dtype == torch.float32
    if is_float4:
        _check_float4(antiquant_scale, antiquant_offset, quant_scale, group)
    matrix = _whole(weight, x.shape[-1])
    depth = matrix.shape[-2]
    if x.shape[-1] != depth:
        raise ValueError(f"npu_weight_quant_batchmatmul: weight must be of K = {x.shape[-1]}, got {depth}")
    if group and not is_float4 and not (group % LEAST_GROUP == 0 and LEAST_GROUP <= group < depth):
        raise ValueError(
            f"npu_weight_quant_batchmatmul: antiquant_group_size must be 0 or a multiple of 32 below K = {depth}, got {group}"
        )
    values = matrix.float()
    if antiquant_offset is not None:
        values = values + _of_rows(antiquant_offset.float(), group, depth)
    scale = mx.power(antiquant_scale.view(torch.uint8)).float() if is_float4 else unpacked(antiquant_scale)[0]
    y = x.float() @ (values * _of_rows(scale, group, depth))
    if bias is not None:
        y = y + bias.float()
    if quant_scale is None:
        return y.to(x.dtype)
    factors, shift = unpacked(quant_scale)
    shift = shift if quant_offset is None else quant_offset.float()
    y = y * factors
    return destination.rounded(y if shift is None else y + shift, INT8_MAX)


def _check_float4(scale: Tensor, offset: Tensor | None, quant_scale: Tensor | None, group: int) -> None:
    mx.only_on_950("npu_weight_quant_batchmatmul of float4 weights")
    if scale.dtype not in (torch.uint8, getattr(torch, "float8_e8m0fnu", None)) or group != mx.BLOCK:
        raise ValueError(
            f"npu_weight_quant_batchmatmul: antiquant_scale must be uint8 or float8_e8m0fnu and antiquant_group_size {mx.BLOCK} of float4 "
            f"weights, got {scale.dtype} and {group}"
        )
    if offset is not None or quant_scale is not None:
        raise ValueError(
            "npu_weight_quant_batchmatmul: antiquant_offset and quant_scale must be None of float4 weights"
        )


def _whole(weight: Tensor, depth: int) -> Tensor:
    """The weights [..., K, N], int8 or float4's values; of those packed in words K tells which dimension is packed."""
    if weight.dtype in (torch.int32, torch.float32):
        transposed = weight.shape[-2] != depth
        words = (weight.transpose(-1, -2) if transposed else weight).view(torch.int32)
        matrix = int4.unpacked(words)
        if weight.dtype == torch.float32:
            matrix = mx.decoded(int4.carried(matrix), mx.E2M1)
        return matrix.transpose(-1, -2) if transposed else matrix
    if weight.dtype not in (torch.int8, torch.uint8):
        raise NotImplementedError(
            f"npu_weight_quant_batchmatmul: weight must be int8, int32 of int4 or float32 of float4, got {weight.dtype}"
        )
    return int4.of_carrier(weight)


def _of_rows(parameter: Tensor, group: int, depth: int) -> Tensor:
    """Given once for each `group` rows of the weight, it for each row."""
    if not group:
        return parameter
    return parameter.repeat_interleave(group, -2)[..., :depth, :]


def _ge_weight_quant_batch_matmul_v2(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    transpose_x: bool = False,
    transpose_weight: bool = False,
    antiquant_group_size: int = 0,
    dtype: int = -1,
    inner_precise: int = 0,
) -> Tensor:
    """GE WeightQuantBatchMatmulV2. Its type follows from the inputs: dtype is -1."""
    if dtype != -1:
        raise NotImplementedError(f"WeightQuantBatchMatmulV2: dtype must be -1, as torchair writes it, got {dtype}")
    return weight_quant_batchmatmul(
        x.transpose(-1, -2) if transpose_x else x,
        weight.transpose(-1, -2) if transpose_weight else weight,
        antiquant_scale,
        antiquant_offset,
        quant_scale,
        quant_offset,
        bias,
        antiquant_group_size,
        inner_precise,
    )


OPERATOR = of_torch_npu(
    "npu_weight_quant_batchmatmul",
    weight_quant_batchmatmul,
    ge=[GeKernel("WeightQuantBatchMatmulV2", _ge_weight_quant_batch_matmul_v2)],
)
