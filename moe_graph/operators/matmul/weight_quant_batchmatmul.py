"""`npu_weight_quant_batchmatmul(x, weight, antiquant_scale, ...)`: a product with weights of int8 or int4.

    x [..., M, K] float16, bfloat16   weight [..., K, N] int8; or int32, eight int4 in each along N, or along K of a transposed one
    antiquant_scale, antiquant_offset  [1], [1, 1]; [N], [1, N]; with antiquant_group_size g [ceil(K / g), N]; the scale also int64 of
    npu_trans_quant_param, its offset then int32

    y = x @ ((weight + antiquant_offset) * antiquant_scale) + bias      like x, or int8 round(y * quant_scale + quant_offset)

    quant_scale, quant_offset [1], [N] float32; quant_scale also int64 of npu_trans_quant_param, which holds the offset

Sources: the operator's page in the torch_npu documentation, the document of aclnnWeightQuantBatchMatmulV2 (ops-nn). Float32 inside, rounded
once; inner_precise changes nothing. Not served: float4, float8 (Ascend 950).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.quantization import destination, int4
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
    matrix = _whole(weight, x.shape[-1])
    depth = matrix.shape[-2]
    if x.shape[-1] != depth:
        raise ValueError(f"npu_weight_quant_batchmatmul: weight must be of K = {x.shape[-1]}, got {depth}")
    group = antiquant_group_size
    if group and not (group % LEAST_GROUP == 0 and LEAST_GROUP <= group < depth):
        raise ValueError(
            f"npu_weight_quant_batchmatmul: antiquant_group_size must be 0 or a multiple of 32 below K = {depth}, got {group}"
        )
    values = matrix.float()
    if antiquant_offset is not None:
        values = values + _of_rows(antiquant_offset.float(), group, depth)
    y = x.float() @ (values * _of_rows(unpacked(antiquant_scale)[0], group, depth))
    if bias is not None:
        y = y + bias.float()
    if quant_scale is None:
        return y.to(x.dtype)
    factors, shift = unpacked(quant_scale)
    shift = shift if quant_offset is None else quant_offset.float()
    y = y * factors
    return destination.rounded(y if shift is None else y + shift, INT8_MAX)


def _whole(weight: Tensor, depth: int) -> Tensor:
    """The weights as int8 [..., K, N]; of int4 in int32 K tells which dimension is packed."""
    if weight.dtype == torch.int32:
        transposed = weight.shape[-2] != depth
        packed = weight.transpose(-1, -2) if transposed else weight
        matrix = int4.unpacked(packed)
        return matrix.transpose(-1, -2) if transposed else matrix
    if weight.dtype not in (torch.int8, torch.uint8):
        raise NotImplementedError(
            f"npu_weight_quant_batchmatmul: weight must be int8, or int32 of int4, got {weight.dtype}"
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
