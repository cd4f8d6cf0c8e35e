"""Order: sorting, the largest elements, searching in sorted sequences, places of the extremes."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine import dtypes
from moe_graph.engine.dtypes import GeType
from moe_graph.engine.registry import kernel

_INT32, _INT64 = 3, 9  # DT_INT32 and DT_INT64 of GE's enum


@kernel("Sort")
def sort(
    x: Tensor, *, axis: int = -1, descending: bool = False, stable: bool = False, y2_dtype: int = _INT32
) -> tuple[Tensor, Tensor]:
    """GE Sort: x sorted along axis, and the places its elements had, of type y2_dtype. It is stable whether asked for or not."""
    values, places = torch.sort(x, dim=axis, descending=descending, stable=True)
    return values, places.to(dtypes.from_ge(y2_dtype).torch)


@kernel("TopK")
def top_k(
    x: Tensor,
    k: Tensor,
    *,
    sorted: bool = True,  # noqa: A002
    largest: bool = True,
    dim: int = -1,
) -> tuple[Tensor, Tensor]:
    """GE TopK: TopKV2 with places of type int32."""
    return _top_k(x, k, dim, largest, sorted, torch.int32)


def _top_k(
    x: Tensor, k: Tensor, dim: int, largest: bool, in_order: bool, places_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    values, places = torch.topk(x, int(k), dim, largest, in_order)
    return values, places.to(places_dtype)


@kernel("TopKV2")
def top_k_v2(
    x: Tensor,
    k: Tensor,
    *,
    sorted: bool = True,  # noqa: A002
    dim: int = -1,
    largest: bool = True,
    indices_dtype: GeType = 3,
    sort_policy: int = 1,
) -> tuple[Tensor, Tensor]:
    """GE TopKV2: the k largest (or smallest) elements along dim and their places, of type indices_dtype.

    sort_policy chooses an algorithm, not the values.
    """
    return _top_k(x, k, dim, largest, sorted, indices_dtype.torch)


@kernel("SearchSorted")
def search_sorted(
    sorted_sequence: Tensor,
    values: Tensor,
    sorter: Tensor | None = None,
    *,
    dtype: GeType = _INT64,
    right: bool = False,
) -> Tensor:
    """GE SearchSorted: where each value would be put into the sorted last dimension: before equal elements, or with right after them."""
    order = None if sorter is None else sorter.long()
    return torch.searchsorted(sorted_sequence, values, sorter=order, right=right).to(dtype.torch)


@kernel("ArgMaxV2")
def arg_max_v2(x: Tensor, dimension: Tensor, *, dtype: GeType = _INT64) -> Tensor:
    """GE ArgMaxV2: the place of the first largest element along dimension."""
    return x.argmax(int(dimension)).to(dtype.torch)


@kernel("ArgMin")
def arg_min(x: Tensor, dimension: Tensor, *, dtype: GeType = _INT64) -> Tensor:
    """GE ArgMin: the place of the first smallest element along dimension."""
    return x.argmin(int(dimension)).to(dtype.torch)


@kernel("ArgMaxWithValue")
def arg_max_with_value(
    x: Tensor, *, dimension: int, keep_dims: bool = False, indice_dtype: int = _INT32
) -> tuple[Tensor, Tensor]:
    """GE ArgMaxWithValue: the place, of type indice_dtype, of the first largest element along dimension, and the element."""
    values, places = x.max(dimension, keepdim=keep_dims)
    return places.to(dtypes.from_ge(indice_dtype).torch), values


@kernel("ArgMinWithValue")
def arg_min_with_value(
    x: Tensor, *, dimension: int, keep_dims: bool = False, indice_dtype: int = _INT32
) -> tuple[Tensor, Tensor]:
    """GE ArgMinWithValue: the place, of type indice_dtype, of the first smallest element along dimension, and the element."""
    values, places = x.min(dimension, keepdim=keep_dims)
    return places.to(dtypes.from_ge(indice_dtype).torch), values
