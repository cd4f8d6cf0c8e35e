"""Reductions along dimensions and running sums."""

from __future__ import annotations

from torch import Tensor

from moe_graph.engine.registry import kernel


def _dimensions(x: Tensor, axes: Tensor, noop_with_empty_axes: bool) -> tuple[int, ...]:
    """Empty axes mean all dimensions, or none with noop_with_empty_axes."""
    chosen = tuple(axes.reshape(-1).tolist())
    return chosen if chosen or noop_with_empty_axes else tuple(range(x.dim()))


@kernel("ReduceSum")
def reduce_sum(x: Tensor, axes: Tensor, *, keep_dims: bool = False, noop_with_empty_axes: bool = True) -> Tensor:
    """GE ReduceSum: the sum along axes, in the dtype of x."""
    dimensions = _dimensions(x, axes, noop_with_empty_axes)
    return x.sum(dimensions, keepdim=keep_dims, dtype=x.dtype) if dimensions else x.clone()


@kernel("ReduceMean")
def reduce_mean(x: Tensor, axes: Tensor, *, keep_dims: bool = False, noop_with_empty_axes: bool = True) -> Tensor:
    """GE ReduceMean: the mean along axes."""
    dimensions = _dimensions(x, axes, noop_with_empty_axes)
    return x.mean(dimensions, keepdim=keep_dims) if dimensions else x.clone()


@kernel("ReduceMax")
def reduce_max(x: Tensor, axes: Tensor, *, keep_dims: bool = False, noop_with_empty_axes: bool = True) -> Tensor:
    """GE ReduceMax: the largest element along axes."""
    dimensions = _dimensions(x, axes, noop_with_empty_axes)
    return x.amax(dimensions, keepdim=keep_dims) if dimensions else x.clone()


@kernel("Cumsum")
def cumsum(x: Tensor, axis: Tensor, *, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """GE Cumsum: running sum along axis in the dtype of x; exclusive leaves the element itself out, reverse runs from the end."""
    dimension = int(axis)
    source = x.flip(dimension) if reverse else x
    total = source.cumsum(dimension, dtype=x.dtype)
    if exclusive:
        total = total - source
    return total.flip(dimension) if reverse else total
