"""Writing to places of a tensor. A kernel returns the new value and leaves its inputs as they are; Assign
assigns to its reference, as GE defines it and as torchair uses it for operators that change an input."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import in_float32

_REDUCTIONS = {
    "add": "sum",
    "mul": "prod",
    "multiply": "prod",
    "max": "amax",
    "min": "amin",
    "maximum": "amax",
    "minimum": "amin",
}


@kernel("ScatterElements")
def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """GE ScatterElements: updates put at the places of indices along axis, or reduced with what is there ("add", "mul", ...).

    Negative indices count from the end, as in ONNX, which the definition names.
    """
    places = torch.where(indices < 0, indices + data.shape[axis], indices).long() if data.dim() else indices.long()
    if reduction == "none":
        return data.scatter(axis, places, updates)
    if reduction not in _REDUCTIONS:
        raise NotImplementedError(f"reduction must be none or one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    return data.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction], include_self=True)


@kernel("InplaceIndexAdd")
@in_float32
def inplace_index_add(
    var: Tensor, indices: Tensor, updates: Tensor, alpha: Tensor | None = None, *, axis: int
) -> Tensor:
    """GE InplaceIndexAdd: var with alpha (1 if absent) times the slices of updates added at indices along axis."""
    return var.index_add(axis, indices, updates, alpha=1 if alpha is None else alpha.item())


@kernel("Assign", assigns="ref")
def assign(ref: Tensor, value: Tensor, *, validate_shape: bool = True, use_locking: bool = False) -> Tensor:
    """GE Assign: value assigned to the reference ref, which is the result."""
    if ref.shape != value.shape:
        raise ValueError(f"value must have the shape of ref, {list(ref.shape)}, got {list(value.shape)}")
    return ref.copy_(value)


@kernel("TensorScatterUpdate")
def tensor_scatter_update(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """GE TensorScatterUpdate: x with updates at the elements or slices that the last dimension of indices names."""
    return x.index_put(tuple(indices.long().unbind(-1)), updates)


@kernel("ScatterNdAdd")
@in_float32
def scatter_nd_add(var: Tensor, indices: Tensor, updates: Tensor, *, use_locking: bool = False) -> Tensor:
    """GE ScatterNdAdd: updates added at the elements or slices that the last dimension of indices names."""
    return var.index_put(tuple(indices.long().unbind(-1)), updates, accumulate=True)


@kernel("TensorScatterAdd")
def tensor_scatter_add(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """GE TensorScatterAdd: x with updates added at the elements or slices that the last dimension of indices names."""
    return scatter_nd_add(x, indices, updates)


@kernel("ScatterUpdate")
def scatter_update(var: Tensor, indices: Tensor, updates: Tensor, *, use_locking: bool = False) -> Tensor:
    """GE ScatterUpdate: updates put at the slices of the first dimension that indices names."""
    return var.index_put((indices.long(),), updates)


@kernel("MaskedScatter")
def masked_scatter(x: Tensor, mask: Tensor, updates: Tensor) -> Tensor:
    """GE MaskedScatter: the elements of updates in turn where mask is true, else x."""
    return x.masked_scatter(mask, updates)


@kernel("ViewCopy")
def view_copy(
    dst: Tensor,
    dst_size: Tensor,
    dst_stride: Tensor,
    dst_storage_offset: Tensor,
    src: Tensor,
    src_size: Tensor,
    src_stride: Tensor,
    src_storage_offset: Tensor,
) -> Tensor:
    """GE ViewCopy: dst with its view of given sizes and strides filled from the view of src, which broadcasts to it."""
    result = dst.contiguous().clone()
    source = src.contiguous().as_strided(src_size.tolist(), src_stride.tolist(), int(src_storage_offset))
    result.as_strided(dst_size.tolist(), dst_stride.tolist(), int(dst_storage_offset)).copy_(source)
    return result


@kernel("TensorScatterMax")
def tensor_scatter_max(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:  # noqa: A002
    """GE TensorScatterMax: the larger of what is there and updates, at the elements that the last dimension of indices names."""
    places = tuple(indices.long().unbind(-1))
    flat = torch.arange(input.numel()).view(input.shape)[places].reshape(-1)
    return input.reshape(-1).scatter_reduce(0, flat, updates.reshape(-1), "amax", include_self=True).view(input.shape)
