"""Matrix products. Half types accumulate in float32 and are rounded once; of mixed types the result has that of x1."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import in_float32, listed


def _matrix(x: Tensor, transposed: bool) -> Tensor:
    return x.transpose(-1, -2) if transposed else x


_matmul = listed(torch.ops.aten.matmul.default)
_addmm = listed(torch.ops.aten.addmm.default)


@in_float32
def _biased(x1: Tensor, x2: Tensor, bias: Tensor) -> Tensor:
    return x1 @ x2 + bias


def _sum_of_products(x1: Tensor, x2: Tensor, bias: Tensor | None, offset_w: Tensor | None, offset_x: int) -> Tensor:
    if offset_w is not None or offset_x:
        raise NotImplementedError("offset_w and offset_x (quantised products) are not modelled")
    if bias is None:
        return _matmul(x1, x2)
    return _addmm(bias, x1, x2) if x1.dim() == x2.dim() == 2 else _biased(x1, x2, bias)


@kernel("MatMul")
def mat_mul(
    x1: Tensor, x2: Tensor, bias: Tensor | None = None, *, transpose_x1: bool = False, transpose_x2: bool = False
) -> Tensor:
    """GE MatMul: x1 @ x2 + bias, either transposed first."""
    return _sum_of_products(_matrix(x1, transpose_x1), _matrix(x2, transpose_x2), bias, None, 0)


@kernel("MatMulV2", "MatMulV3")
def mat_mul_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    offset_x: int = 0,
    opImplMode: int = 1,  # noqa: N803
) -> Tensor:
    """GE MatMulV2, MatMulV3: x1 @ x2 + bias, either transposed first. opImplMode (HF32) only loosens the precision."""
    return _sum_of_products(_matrix(x1, transpose_x1), _matrix(x2, transpose_x2), bias, offset_w, offset_x)


@kernel("BatchMatMul")
def batch_mat_mul(x1: Tensor, x2: Tensor, *, adj_x1: bool = False, adj_x2: bool = False) -> Tensor:
    """GE BatchMatMul: x1 @ x2 over leading dimensions, either transposed first."""
    return _matmul(_matrix(x1, adj_x1), _matrix(x2, adj_x2))


@kernel("BatchMatMulV2", "BatchMatMulV3")
def batch_mat_mul_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    adj_x1: bool = False,
    adj_x2: bool = False,
    offset_x: int = 0,
    enable_hf32: bool = False,
) -> Tensor:
    """GE BatchMatMulV2, BatchMatMulV3: x1 @ x2 + bias over leading dimensions, either transposed first. HF32 only loosens the
    precision."""
    return _sum_of_products(_matrix(x1, adj_x1), _matrix(x2, adj_x2), bias, offset_w, offset_x)
