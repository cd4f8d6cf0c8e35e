"""`npu_quant_matmul_reduce_sum(x1, x2, *, x1_scale, x2_scale)`: the sum over the batch of int8 products, each scaled back.

    x1 [B, M, K], x2 [B, K, N] int8   x1_scale [B, M] float32   x2_scale [N] bfloat16   -> [M, N] bfloat16
    y = sum over b of x1[b] @ x2[b] * x1_scale[b] * x2_scale

Source: the operator's page in the torch_npu documentation. Products are exact, the sum over the batch is float32, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.matmul.products import exact_product

_check = Checks("npu_quant_matmul_reduce_sum")


def quant_matmul_reduce_sum(
    x1: Tensor, x2: Tensor, *, x1_scale: Tensor | None = None, x2_scale: Tensor | None = None
) -> Tensor:
    """As the module's document says. Raises ValueError if a scale is left out, or for another shape or dtype."""
    for name, tensor in (("x1", x1), ("x2", x2)):
        _check.dtype(name, tensor, (torch.int8,))
        _check.rank(name, tensor, (3,), "[B, M, K]" if name == "x1" else "[B, K, N]")
    if x1_scale is None or x2_scale is None:
        raise ValueError("npu_quant_matmul_reduce_sum: x1_scale and x2_scale must be given")
    scaled = exact_product(x1, x2).float() * x1_scale.float().unsqueeze(-1) * x2_scale.float()
    return scaled.sum(0).to(torch.bfloat16)


def _ge_quant_matmul_reduce_sum(
    x1: Tensor,
    x2: Tensor,
    dims: Tensor,
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
    group_size: int = -1,
    keep_dims: bool = False,
) -> Tensor:
    """GE QuantMatmulReduceSum, of the inputs that torchair feeds: the sum over the batch."""
    others = (bias, y_scale, x1_offset, x2_offset, y_offset, x2_table)
    if any(value is not None for value in others) or dims.tolist() != [0] or keep_dims or dtype.torch != torch.bfloat16:
        raise NotImplementedError(
            "QuantMatmulReduceSum: dims must be [0], dtype DT_BF16, keep_dims false, and of the optional inputs only the scales of x1 and "
            "x2 are served"
        )
    left = x1.transpose(-1, -2) if transpose_x1 else x1
    right = x2.transpose(-1, -2) if transpose_x2 else x2
    return quant_matmul_reduce_sum(left, right, x1_scale=x1_scale, x2_scale=x2_scale)


OPERATOR = of_torch_npu(
    "npu_quant_matmul_reduce_sum",
    quant_matmul_reduce_sum,
    ge=[GeKernel("QuantMatmulReduceSum", _ge_quant_matmul_reduce_sum)],
)
