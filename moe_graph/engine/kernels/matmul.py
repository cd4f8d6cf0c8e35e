"""Matrix products. They accumulate as PyTorch's CPU kernels do."""

from __future__ import annotations

from torch import Tensor

from moe_graph.engine.registry import kernel


def _matrix(x: Tensor, transposed: bool) -> Tensor:
    return x.transpose(-1, -2) if transposed else x


@kernel("MatMul", "MatMulV2", "MatMulV3")
def mat_mul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    *,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    offset_x: int = 0,
    enable_hf32: bool = False,
    opImplMode: int = 0,  # noqa: N803
) -> Tensor:
    """GE MatMul: x1 @ x2 + bias, either transposed first. HF32 and implementation modes only loosen the precision."""
    product = _matrix(x1, transpose_x1) @ _matrix(x2, transpose_x2)
    return product if bias is None else product + bias


@kernel("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
def batch_mat_mul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    *,
    adj_x1: bool = False,
    adj_x2: bool = False,
    offset_x: int = 0,
    enable_hf32: bool = False,
) -> Tensor:
    """GE BatchMatMul: x1 @ x2 + bias over leading dimensions, either transposed first."""
    product = _matrix(x1, adj_x1) @ _matrix(x2, adj_x2)
    return product if bias is None else product + bias
