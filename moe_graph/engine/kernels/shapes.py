"""Shapes: reading them and changing them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_graph.engine.dtypes import GeType
from moe_graph.engine.registry import kernel

_INT32 = 3  # GE's number of DT_INT32


@kernel("Shape")
def shape(x: Tensor, *, dtype: GeType = _INT32) -> Tensor:
    """GE Shape: the dimensions of x."""
    return torch.tensor(x.shape, dtype=dtype.torch)


@kernel("Size")
def size(x: Tensor, *, dtype: GeType = _INT32) -> Tensor:
    """GE Size: the number of elements of x, a scalar."""
    return torch.tensor(x.numel(), dtype=dtype.torch)


@kernel("Reshape")
def reshape(x: Tensor, shape: Tensor, *, axis: int = 0, num_axes: int = -1) -> Tensor:
    """GE Reshape: the elements of x in another shape, which replaces num_axes dimensions (-1: all the rest) from axis on."""
    end = x.dim() if num_axes == -1 else axis + num_axes
    return x.reshape([*x.shape[:axis], *shape.reshape(-1).tolist(), *x.shape[end:]])


@kernel("FlattenV2")
def flatten_v2(x: Tensor, *, axis: int = 1, end_axis: int = -1) -> Tensor:
    """GE FlattenV2: dimensions axis to end_axis made one."""
    return x.flatten(axis, end_axis)


@kernel("Squeeze")
def squeeze(x: Tensor, *, axis: list = ()) -> Tensor:
    """GE Squeeze: without the given dimensions, whose size must be 1, or without all of size 1."""
    for dimension in axis:
        if x.dim() and x.shape[dimension] != 1:
            raise ValueError(f"axis {dimension} must be a dimension of size 1, got shape {list(x.shape)}")
    return x.squeeze(tuple(axis)) if axis else x.squeeze()


@kernel("Unsqueeze")
def unsqueeze(x: Tensor, *, axes: list = ()) -> Tensor:
    """GE Unsqueeze: with dimensions of size 1 at these places of the result."""
    rank = x.dim() + len(axes)
    for place in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(place)
    return x


@kernel("ExpandDims")
def expand_dims(x: Tensor, axis: Tensor) -> Tensor:
    """GE ExpandDims: with one dimension of size 1 at axis."""
    return x.unsqueeze(int(axis))


@kernel("Range")
def range_(start: Tensor, limit: Tensor, delta: Tensor, *, is_closed: bool = False) -> Tensor:
    """GE Range: start, start + delta, ... below limit (is_closed: up to it), of their type, or float32 if they differ in it."""
    dtype = start.dtype if start.dtype == limit.dtype == delta.dtype else torch.float32
    first, last, step = start.item(), limit.item(), delta.item()
    if is_closed:
        return torch.arange(math.floor((last - first) / step) + 1, dtype=dtype) * step + first
    return torch.arange(first, last, step, dtype=dtype)
