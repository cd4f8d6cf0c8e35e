"""`npu_clipped_swiglu(x, *, group_index=None, dim=-1, alpha=1.702, limit=7.0, bias=1.0, interleaved=True)`: gpt-oss's swiglu.

    A, B: the even and odd elements of x along dim (with what lies behind dim), or its halves
    y = min(A, limit) * sigmoid(alpha * min(A, limit)) * (clamp(B, -limit, limit) + bias)
    group_index [G] int64: only the first sum(group_index) rows, the dimensions before dim taken as one; the others are 0 here and not
    written on a device

Source: the operator's page in the torch_npu documentation. Float32 inside, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed


def clipped_swiglu(
    x: Tensor,
    *,
    group_index: Tensor | None = None,
    dim: int = -1,
    alpha: float = 1.702,
    limit: float = 7.0,
    bias: float = 1.0,
    interleaved: bool = True,
) -> Tensor:
    """x [..., 2 H, ...] -> [..., H, ...]"""
    dim %= x.dim()
    if x.shape[dim] % 2:
        raise ValueError(f"x must have an even size along dim {dim}, got {list(x.shape)}")
    shape = (*x.shape[:dim], x.shape[dim] // 2, *x.shape[dim + 1 :])
    rows = x.reshape(-1 if x.numel() else 0, x[(0,) * dim].numel() if x.numel() else 0).float()
    left, right = (rows[:, ::2], rows[:, 1::2]) if interleaved else rows.chunk(2, -1)
    left, right = left.clamp(max=limit), right.clamp(-limit, limit)
    y = left * torch.sigmoid(alpha * left) * (right + bias)
    if group_index is not None:
        used = group_index.sum()
        y = torch.where((torch.arange(len(y)) < used).unsqueeze(1), y, torch.zeros_like(y))
    return y.to(x.dtype).reshape(shape)


OPERATOR = of_torch_npu("npu_clipped_swiglu", clipped_swiglu, ge=[GeKernel("ClippedSwiglu", renamed(clipped_swiglu))])
