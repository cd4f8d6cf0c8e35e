"""`npu_transpose_batchmatmul(input, weight, *, bias, scale, perm_x1, perm_x2, perm_y, batch_split_factor)`: (input @ weight), transposed.

    input permuted by perm_x1 is [B, M, K], weight by perm_x2 [B, K, N]; y = their products [B, M, N] permuted by perm_y: [M, B, N]
    batch_split_factor f > 1: [f, M, B * N / f]
    scale [B * N] int64, uint64 (its low 32 bits are a float32): int8 [M, 1, B * N], round(y * scale), halves to even

Sources: the operator's page in the torch_npu documentation; the document of aclnnTransposeBatchMatMul (ops-nn). Float32 inside, rounded
once. bias is not supported yet by that page either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.quantization.int8 import to_int8
from moe_graph.operators.quantization.trans_quant_param import unpacked
from moe_graph.operators.rounding import listed

_bmm = listed(torch.ops.aten.bmm.default)
_PLAIN, _SWAPPED = (0, 1, 2), (1, 0, 2)


def transpose_batchmatmul(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    perm_x1: Sequence[int] | None = None,
    perm_x2: Sequence[int] | None = None,
    perm_y: Sequence[int] | None = None,
    batch_split_factor: int | None = 1,
) -> Tensor:
    """As the module's document says. Raises ValueError for what it excludes."""
    if bias is not None:
        raise NotImplementedError("npu_transpose_batchmatmul: bias is not supported, it must be None")
    if x.dim() != 3 or weight.dim() != 3:
        raise ValueError(f"input and weight must have three dimensions, got {list(x.shape)} and {list(weight.shape)}")
    order = tuple(perm_y or _SWAPPED)
    if order != _SWAPPED:
        raise ValueError(f"perm_y must be {list(_SWAPPED)}, got {list(order)}")
    left, right = x.permute(*(perm_x1 or _PLAIN)), weight.permute(*(perm_x2 or _PLAIN))
    if scale is not None:
        wide = torch.bmm(left.float(), right.float()).permute(order)  # [M, B, N]
        return to_int8(wide.reshape(len(wide), 1, -1) * unpacked(scale)[0])
    product, parts = _bmm(left, right).permute(order), batch_split_factor or 1
    if parts > 1:
        return product.reshape(len(product), parts, -1).transpose(0, 1).contiguous()
    return product.contiguous()


def _ge_transpose_batch_mat_mul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    perm_x1: list | None = None,
    perm_x2: list | None = None,
    perm_y: list | None = None,
    enable_hf32: bool = False,
    batch_split_factor: int = 1,
) -> Tensor:
    return transpose_batchmatmul(
        x1,
        x2,
        bias=bias,
        scale=scale,
        perm_x1=perm_x1,
        perm_x2=perm_x2,
        perm_y=perm_y,
        batch_split_factor=batch_split_factor,
    )


OPERATOR = of_torch_npu(
    "npu_transpose_batchmatmul",
    transpose_batchmatmul,
    ge=[GeKernel("TransposeBatchMatMul", _ge_transpose_batch_mat_mul)],
)
