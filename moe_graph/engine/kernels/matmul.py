"""Matrix products. Half types accumulate in float32 and are rounded once, as PyTorch's CPU kernels do it."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel


def _matrix(x: Tensor, transposed: bool) -> Tensor:
    return x.transpose(-1, -2) if transposed else x


def product(x1: Tensor, x2: Tensor) -> Tensor:
    """x1 @ x2. Half types go through float32 where PyTorch has no fast kernel for them on this CPU: the same sums, far sooner."""
    if slow_on_this_cpu(x1.dtype):
        return (x1.float() @ x2.float()).to(x1.dtype)
    return x1 @ x2


def slow_on_this_cpu(dtype: torch.dtype) -> bool:
    """Is it a half type that PyTorch multiplies element by element here? Some hundred times slower than float32."""
    return dtype in _ASKED and not getattr(torch.ops.mkldnn, _ASKED[dtype], lambda: False)()


# torch's own question of oneDNN; up to torch 2.3 there is none about float16.
_ASKED = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def _sum_of_products(x1: Tensor, x2: Tensor, bias: Tensor | None, offset_w: Tensor | None, offset_x: int) -> Tensor:
    if offset_w is not None or offset_x:
        raise NotImplementedError("offset_w and offset_x (quantised products) are not modelled")
    y = product(x1, x2)
    return y if bias is None else y + bias


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
    return product(_matrix(x1, adj_x1), _matrix(x2, adj_x2))


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
