"""Tensors made from a shape or a few numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.dtypes import GeType
from moe_graph.engine.registry import kernel


@kernel("ZerosLike")
def zeros_like(x: Tensor) -> Tensor:
    """GE ZerosLike: zeros of the shape and dtype of x."""
    return torch.zeros_like(x)


@kernel("OnesLike")
def ones_like(x: Tensor) -> Tensor:
    """GE OnesLike: ones of the shape and dtype of x."""
    return torch.ones_like(x)


@kernel("Empty")
def empty(shape: Tensor, *, dtype: GeType = 3, init: bool = False) -> Tensor:
    """GE Empty: a tensor whose values mean nothing, zeros with init. The host always gives zeros, so that runs repeat."""
    return torch.zeros(shape.tolist(), dtype=dtype.torch)


@kernel("LinSpace")
def lin_space(start: Tensor, stop: Tensor, num: Tensor) -> Tensor:
    """GE LinSpace: num numbers from start to stop, both included, at equal distances."""
    return torch.linspace(start.item(), stop.item(), int(num), dtype=start.dtype)


@kernel("Eye")
def eye(*, num_rows: int, num_columns: int = 0, batch_shape: list = (), dtype: GeType = 0) -> Tensor:
    """GE Eye: ones on the diagonal, zeros elsewhere, [*batch_shape, num_rows, num_columns]; num_columns 0 is num_rows."""
    return torch.eye(num_rows, num_columns or num_rows, dtype=dtype.torch).expand(*batch_shape, -1, -1).clone()
