"""Parts and views of a tensor by begin, end and step, by stride, by triangle; reversed order."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.operators.tensor.indexing import sliced


@kernel("StridedSliceV2")
def strided_slice_v2(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    axes: Tensor | None = None,
    strides: Tensor | None = None,
    *,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Tensor:
    """GE StridedSliceV2: x[begin:end:strides] along axes (the first ones if absent), as NumPy slices.

    Bit i of begin_mask or end_mask leaves that end open, of shrink_axis_mask takes one element and the dimension away.
    ellipsis_mask and new_axis_mask are not modelled.
    """
    if ellipsis_mask or new_axis_mask:
        raise NotImplementedError(f"ellipsis_mask and new_axis_mask must be 0, got {ellipsis_mask} and {new_axis_mask}")
    begins, ends = begin.reshape(-1).tolist(), end.reshape(-1).tolist()
    dimensions = list(range(len(begins))) if axes is None else [axis % x.dim() for axis in axes.reshape(-1).tolist()]
    steps = [1] * len(begins) if strides is None else strides.reshape(-1).tolist()
    shrunk = []
    for bit, (dimension, first, last, step) in enumerate(zip(dimensions, begins, ends, steps)):
        if shrink_axis_mask >> bit & 1:
            place = first % x.shape[dimension]
            x = x.narrow(dimension, place, 1)
            shrunk.append(dimension)
            continue
        chosen = slice(None if begin_mask >> bit & 1 else first, None if end_mask >> bit & 1 else last, step)
        x = sliced(x, dimension, chosen)
    for dimension in sorted(shrunk, reverse=True):
        x = x.squeeze(dimension)
    return x.contiguous()


@kernel("AsStrided")
def as_strided(x: Tensor, size: Tensor, stride: Tensor, storage_offset: Tensor) -> Tensor:
    """GE AsStrided: the elements of x, in its dense order, at storage_offset + sum of place * stride."""
    return x.contiguous().as_strided(size.tolist(), stride.tolist(), int(storage_offset)).clone()


@kernel("ReverseV2")
def reverse_v2(x: Tensor, axis: Tensor) -> Tensor:
    """GE ReverseV2: x from its end along axis (several)."""
    return x.flip(axis.reshape(-1).tolist())


@kernel("Roll")
def roll(x: Tensor, *, shifts: list, dims: list = ()) -> Tensor:
    """GE Roll: elements moved on by shifts along dims, those over the end to the beginning; without dims in flat order."""
    return torch.roll(x, tuple(shifts), tuple(dims))


@kernel("Tril")
def tril(x: Tensor, *, diagonal: int = 0) -> Tensor:
    """GE Tril: x up to this diagonal of the last two dimensions, zeros above."""
    return torch.tril(x, diagonal)


@kernel("Triu")
def triu(x: Tensor, *, diagonal: int = 0) -> Tensor:
    """GE Triu: x from this diagonal of the last two dimensions on, zeros below."""
    return torch.triu(x, diagonal)


@kernel("Diag")
def diag(x: Tensor) -> Tensor:
    """GE Diag: a tensor of twice the dimensions with x on its diagonal, zeros elsewhere."""
    return torch.diag(x.reshape(-1)).reshape(*x.shape, *x.shape)
