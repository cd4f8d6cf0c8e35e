"""Reading and writing by index."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.dtypes import GeType
from moe_graph.engine.graph import Node
from moe_graph.engine.registry import Tensors, kernel
from moe_graph.operators.rounding import listed


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
    """GE GatherV2: slices of x along axis at indices (any shape); negative indices count from the end where they are supported.

    batch_dims leading dimensions are shared by x and indices: slices of each entry at its own indices.
    """
    if not x.dim():
        raise ValueError("x must have a dimension to gather along, got a scalar")
    dimension = int(axis) % x.dim()
    if batch_dims:
        return _gather_in_batches(
            x, indices, dimension, batch_dims + (indices.dim() if batch_dims < 0 else 0), negative_index_support
        )
    flat = indices.reshape(-1)
    if negative_index_support:
        flat = torch.where(flat < 0, flat + x.shape[dimension], flat)
    return (
        x.index_select(dimension, flat).unflatten(dimension, tuple(indices.shape))
        if indices.dim()
        else x.select(dimension, int(flat))
    )


def _gather_in_batches(x: Tensor, indices: Tensor, axis: int, shared: int, negative: bool) -> Tensor:
    if x.shape[:shared] != indices.shape[:shared] or axis < shared:
        raise ValueError(
            f"the first {shared} dimensions of x and indices must be the same and before axis {axis}, got {list(x.shape)} and "
            f"{list(indices.shape)}"
        )
    size, wanted = x.shape[axis], indices.shape[shared:]
    places = torch.where(indices < 0, indices + size, indices) if negative else indices
    moved = x.movedim(axis, shared)
    others = moved.shape[shared + 1 :]
    flat = places.long().reshape(*x.shape[:shared], -1, *[1] * len(others))
    found = moved.gather(shared, flat.expand(*flat.shape[: shared + 1], *others)).movedim(shared, axis)
    return found.reshape(*found.shape[:axis], *wanted, *found.shape[axis + 1 :])


@kernel("InvertPermutation")
def invert_permutation(x: Tensor) -> Tensor:
    """GE InvertPermutation: y[x[i]] = i."""
    y = torch.empty_like(x)
    y[x.long()] = torch.arange(len(x), dtype=x.dtype)
    return y


@kernel("Gather")
def gather(
    x: Tensor,
    indices: Tensor,
    *,
    validate_indices: bool = True,
    batch_dims: int = 0,
    is_preprocessed: bool = False,
    negative_index_support: bool = False,
) -> Tensor:
    """GE Gather: slices of the first dimension behind batch_dims. is_preprocessed steers the kernel, not the values."""
    axis = torch.tensor(batch_dims)
    return gather_v2(x, indices, axis, batch_dims=batch_dims, negative_index_support=negative_index_support)


@kernel("GatherElements")
def gather_elements(x: Tensor, index: Tensor, *, dim: int = 0) -> Tensor:
    """GE GatherElements: the element of x at each place of index along dim."""
    return torch.gather(x, dim, index.long())


@kernel("GatherNd")
def gather_nd(x: Tensor, indices: Tensor, *, negative_index_support: bool = False) -> Tensor:
    """GE GatherNd: the last dimension of indices names elements or slices of x."""
    return x[tuple(indices.long().unbind(-1))]


@kernel("IndexByTensor")
def index_by_tensor(x: Tensor, indices: Tensors, *, indices_mask: list = ()) -> Tensor:
    """GE IndexByTensor: x[...] as PyTorch indexes: where indices_mask is 1 by the next of indices, where it is 0 the whole dimension."""
    fed = iter(indices)
    return x[tuple(_index(next(fed)) if chosen else slice(None) for chosen in indices_mask)]


def _index(indices: Tensor) -> Tensor:
    return indices if indices.dtype in (torch.bool, torch.uint8) else indices.long()


@kernel("IndexPutV2")
def index_put_v2(
    x: Tensor,
    value: Tensor,
    indexed_sizes: Tensor,
    indexed_strides: Tensor,
    indices: Tensors,
    *,
    accumulate: bool = False,
) -> Tensor:
    """GE IndexPutV2: x with value at x[...]; indexed_sizes is 1 where the next of indices stands, 0 for a whole dimension.

    indexed_strides steers the kernel, not the values.
    """
    fed = iter(indices)
    chosen = indexed_sizes.tolist()
    places = [_index(next(fed)) if flag else None for flag in chosen]
    return listed(torch.ops.aten.index_put.default)(x, places, value, accumulate)


@kernel("MaskedSelect")
def masked_select(x: Tensor, mask: Tensor) -> Tensor:
    """GE MaskedSelect: the elements of x where mask is true, [M]."""
    return torch.masked_select(x, mask)


@kernel("NonZero")
def non_zero(x: Tensor, *, transpose: bool = False, dtype: GeType = 9) -> Tensor:
    """GE NonZero: the places of the elements that are not zero, [M, dimensions], or with transpose [dimensions, M]."""
    places = torch.nonzero(x).to(dtype.torch)
    return places.t().contiguous() if transpose else places


@kernel("OneHot")
def one_hot(x: Tensor, depth: Tensor, on_value: Tensor, off_value: Tensor, *, axis: int = -1) -> Tensor:
    """GE OneHot: a new dimension of size depth, on_value at the place x names, off_value elsewhere: their first elements."""
    places = torch.arange(int(depth), dtype=x.dtype)
    dimension = x.dim() if axis == -1 else axis
    shape = [1] * (x.dim() + 1)
    shape[dimension] = -1
    return torch.where(x.unsqueeze(dimension) == places.view(shape), on_value.reshape(-1)[0], off_value.reshape(-1)[0])


@kernel("EmbeddingDenseGrad")
def embedding_dense_grad(
    grad: Tensor, indices: Tensor, *, num_weights: int, padding_idx: int = -1, scale_grad_by_freq: bool = False
) -> Tensor:
    """GE EmbeddingDenseGrad: rows of grad summed by their index, [num_weights, D]."""
    outside = (indices < 0) | (indices >= num_weights)
    if bool((outside & (indices != padding_idx)).any()):  # torch adds to whatever memory they lead to
        raise ValueError(f"indices must be from 0 to num_weights - 1 = {num_weights - 1}, got {indices.tolist()}")
    return listed(torch.ops.aten.embedding_dense_backward.default)(
        grad, indices, num_weights, padding_idx, scale_grad_by_freq
    )


@kernel("EmbeddingBag")
def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    *,
    mode: str = "mean",
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    include_last_offset: bool = False,
    padding_idx: int = -1,
    node: Node | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GE EmbeddingBag: rows of weight reduced by bag ("sum", "mean" or "max"), the bag of each index, the size of each bag, and for
    "max" the index each element comes from. Bags begin at offsets, or are the rows of indices [bags, N].

    scale_grad_by_freq and sparse are for the gradient. The last three results are int32 or int64, as the graph describes them, or
    of the type of indices where it leaves that open.
    """
    if mode not in _BAG_MODES:
        raise ValueError(f"mode must be one of {', '.join(_BAG_MODES)}, got {mode!r}")
    if offsets is None:
        offsets = torch.arange(0, indices.numel(), indices.shape[1], dtype=indices.dtype)
    result, *places = listed(torch.ops.aten._embedding_bag.default)(
        weight,
        indices.reshape(-1),
        offsets,
        scale_grad_by_freq,
        _BAG_MODES[mode],
        False,
        None if per_sample_weights is None else per_sample_weights.reshape(-1),
        include_last_offset,
        padding_idx,
    )
    described = [output.type for output in node.outputs[1:]] if node else [None] * 3
    return result, *(place if kind is None else place.to(kind.torch) for place, kind in zip(places, described))


_BAG_MODES = {"sum": 0, "mean": 1, "max": 2}
