"""Reductions along dimensions and running sums."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_graph.engine import dtypes
from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import in_float32


def _dimensions(x: Tensor, axes: Tensor, noop_with_empty_axes: bool) -> tuple[int, ...]:
    """Empty axes mean all dimensions, or none with noop_with_empty_axes."""
    chosen = tuple(axes.reshape(-1).tolist())
    return chosen if chosen or noop_with_empty_axes else tuple(range(x.dim()))


@kernel("ReduceSum")
@in_float32
def reduce_sum(x: Tensor, axes: Tensor, *, keep_dims: bool = False, noop_with_empty_axes: bool = True) -> Tensor:
    """GE ReduceSum: the sum along axes, in the dtype of x."""
    dimensions = _dimensions(x, axes, noop_with_empty_axes)
    return x.sum(dimensions, keepdim=keep_dims, dtype=x.dtype) if dimensions else x.clone()


@kernel("ReduceMean")
@in_float32
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
@in_float32
def cumsum(x: Tensor, axis: Tensor, *, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """GE Cumsum: running sum along axis in the dtype of x; exclusive leaves the element itself out, reverse runs from the end."""
    dimension = int(axis)
    source = x.flip(dimension) if reverse else x
    total = source.cumsum(dimension, dtype=x.dtype)
    if exclusive:
        total = total - source
    return total.flip(dimension) if reverse else total


@kernel("ReduceMin")
def reduce_min(x: Tensor, axes: Tensor, *, keep_dims: bool = False, noop_with_empty_axes: bool = True) -> Tensor:
    """GE ReduceMin: the smallest element along axes."""
    dimensions = _dimensions(x, axes, noop_with_empty_axes)
    return x.amin(dimensions, keepdim=keep_dims) if dimensions else x.clone()


@kernel("ReduceProd")
@in_float32
def reduce_prod(x: Tensor, axes: Tensor, *, keep_dims: bool = False, noop_with_empty_axes: bool = True) -> Tensor:
    """GE ReduceProd: the product along axes, in the dtype of x."""
    prod = functools.partial(torch.prod, dtype=x.dtype)
    return _by_dimension(prod, x, _dimensions(x, axes, noop_with_empty_axes), keep_dims)


def _by_dimension(function: Callable[..., Tensor], x: Tensor, dimensions: Sequence[int], keep_dims: bool) -> Tensor:
    """A reduction that torch has for one dimension only (all and any before 2.2), along several."""
    rank = max(x.dim(), 1)  # a scalar has the dimensions 0 and -1, too
    for dimension in sorted((d % rank for d in dimensions), reverse=True):
        x = function(x, dimension, keepdim=keep_dims)
    return x if dimensions else x.clone()


@kernel("ReduceAll")
def reduce_all(x: Tensor, axes: Tensor, *, keep_dims: bool = False) -> Tensor:
    """GE ReduceAll: are all elements along axes true? Empty axes mean all dimensions: GE infers so where there is no attribute for it."""
    return _by_dimension(torch.all, x, _dimensions(x, axes, False), keep_dims)


@kernel("ReduceAny")
def reduce_any(x: Tensor, axes: Tensor, *, keep_dims: bool = False) -> Tensor:
    """GE ReduceAny: is an element along axes true? Empty axes as of ReduceAll."""
    return _by_dimension(torch.any, x, _dimensions(x, axes, False), keep_dims)


@kernel("ReduceLogSumExp")
@in_float32
def reduce_log_sum_exp(
    x: Tensor, axes: Tensor, *, keep_dims: bool = False, noop_with_empty_axes: bool = False
) -> Tensor:
    """GE ReduceLogSumExp: the logarithm of the sum of exp(x) along axes; empty axes mean all, unless noop_with_empty_axes."""
    dimensions = _dimensions(x, axes, noop_with_empty_axes)
    return torch.logsumexp(x, dimensions, keepdim=keep_dims) if dimensions else x.clone()


@kernel("ReduceStdWithMean")
@in_float32
def reduce_std_with_mean(
    x: Tensor,
    mean: Tensor,
    *,
    dim: list = (),
    unbiased: bool = True,
    keepdim: bool = False,
    invert: bool = False,
    epsilon: float = 0.001,
    correction: int = 1,
) -> Tensor:
    """GE ReduceStdWithMean: the standard deviation along dim (all if empty) about a given mean of the shape of x.

    The sum of squares is divided by the number of elements, if unbiased less correction. `invert` (the inverse of it, with epsilon) is not
    modelled.
    """
    if invert:
        raise NotImplementedError("invert=True is not modelled")
    dimensions = tuple(dim) or tuple(range(x.dim()))
    count = torch.tensor([x.shape[d] for d in dimensions]).prod().item()
    squares = (x - mean).square().sum(dimensions, keepdim=keepdim)
    return (squares / max(0, count - (correction if unbiased else 0))).sqrt()


# The attribute is a float32, which rounds the largest int32 up.
_INFINITE_ORDERS = {2147483647.0: float("inf"), 2147483648.0: float("inf"), -2147483648.0: float("-inf")}


@kernel("LpNormV2")
@in_float32
def lp_norm_v2(x: Tensor, *, p: float = 2.0, axes: list = (), keepdim: bool = False, epsilon: float = 1e-12) -> Tensor:
    """GE LpNormV2: the p-norm along axes (all if empty). The extremes of int32 stand for infinite p. No norm is below epsilon."""
    order = _INFINITE_ORDERS.get(p, p)
    norm = torch.linalg.vector_norm(x, order, tuple(axes) or None, keepdim)
    return norm.clamp(min=epsilon) if epsilon > 0 else norm


@kernel("Cumprod")
@in_float32
def cumprod(x: Tensor, axis: Tensor, *, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """GE Cumprod: running product along axis; reverse runs from the end. exclusive (without the element itself) is not modelled."""
    if exclusive:
        raise NotImplementedError("exclusive=True is not modelled")
    dimension = int(axis)
    source = x.flip(dimension) if reverse else x
    total = source.cumprod(dimension, dtype=x.dtype)
    return total.flip(dimension) if reverse else total


_UNDEFINED = 28  # GE's number of DT_UNDEFINED


@kernel("ReduceMeanWithCast")
def reduce_mean_with_cast(
    x: Tensor, axes: Tensor, *, keep_dims: bool = False, noop_with_empty_axes: bool = True, dtype: int = _UNDEFINED
) -> Tensor:
    """GE ReduceMeanWithCast: the mean along axes as dtype, that of x if undefined. Halves and integers are summed in float32."""
    wanted = x.dtype if dtype == _UNDEFINED else dtypes.from_ge(dtype).torch
    wide = x.to(torch.promote_types(wanted, torch.float32))
    dimensions = _dimensions(x, axes, noop_with_empty_axes)
    return (wide.mean(dimensions, keepdim=keep_dims) if dimensions else wide).to(wanted)


@kernel("ReduceProdD")
def reduce_prod_d(x: Tensor, *, axes: list, keep_dims: bool = False) -> Tensor:
    """GE ReduceProdD: the product along axes, in the dtype of x."""
    return reduce_prod(x, torch.tensor(axes, dtype=torch.int64), keep_dims=keep_dims)


@kernel("ReduceStdV2")
def reduce_std_v2(
    x: Tensor, *, dim: list = (), correction: int = 1, keepdim: bool = False, is_mean_out: bool = True
) -> tuple[Tensor, Tensor]:
    """GE ReduceStdV2: the standard deviation along dim (all if empty), and the mean; without is_mean_out a device leaves that open.

    The sum of squares is divided by the number of elements less correction, at least 0.
    """
    dimensions = tuple(dim) or tuple(range(x.dim()))
    wide = x.float()
    mean = wide.mean(dimensions, keepdim=True)
    squares = (wide - mean).square().sum(dimensions, keepdim=keepdim)
    std = (squares / max(0, x.numel() // max(1, mean.numel()) - correction)).sqrt()
    return std.to(x.dtype), (mean if keepdim else mean.reshape(std.shape)).to(x.dtype)
