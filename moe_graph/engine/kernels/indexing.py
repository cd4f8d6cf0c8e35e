"""Reading and writing by index."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel


@kernel("GatherV2")
def gather_v2(
    x: Tensor,
    indices: Tensor,
    axis: Tensor,
    *,
    batch_dims: int = 0,
    is_preprocessed: bool = False,
    negative_index_support: bool = False,
) -> Tensor:
    """GE GatherV2: slices of x along axis at indices (any shape); negative indices count from the end where they are supported."""
    if batch_dims:
        raise NotImplementedError(f"batch_dims must be 0 on the host engine, got {batch_dims}")
    dimension = int(axis) % x.dim()
    flat = indices.reshape(-1)
    if negative_index_support:
        flat = torch.where(flat < 0, flat + x.shape[dimension], flat)
    return (
        x.index_select(dimension, flat).unflatten(dimension, tuple(indices.shape))
        if indices.dim()
        else x.select(dimension, int(flat))
    )


@kernel("InvertPermutation")
def invert_permutation(x: Tensor) -> Tensor:
    """GE InvertPermutation: y[x[i]] = i."""
    y = torch.empty_like(x)
    y[x.long()] = torch.arange(len(x), dtype=x.dtype)
    return y
