"""Paged caches: where a slot lies, and how tokens are written there.

    rows   [pages, page size, heads, D]: the memory of slot s is that of rows[s // page size, s % page size]
    NZ     the same shape or [pages, heads * D / n, page size, n], memory always as the latter: a token's elements lie in pieces of n,
           the elements of 32 bytes

Source: the pages of npu_kv_rmsnorm_rope_cache, npu_mla_prolog_v3 and npu_scatter_pa_kv_cache in the torch_npu documentation, and the
golden functions of their tests, in which a negative slot is skipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FRACTAL_BYTES = 32


def checked_slots(slots: Tensor, count: int, name: str) -> tuple[Tensor, Tensor]:
    """(which tokens are written, their slots): negative ones are left out. Raises ValueError beyond the cache's `count` slots."""
    slots = slots.reshape(-1).long()
    if slots.numel() and int(slots.max()) >= count:
        raise ValueError(f"{name} must be below {count}, the slots of the cache, got {int(slots.max())}")
    written = slots >= 0
    return written, slots[written]


def fractal(dtype: torch.dtype) -> int:
    """How many elements of this dtype lie together in an NZ cache: 16 of two bytes, 32 of one."""
    return _FRACTAL_BYTES // dtype.itemsize


def in_pages(cache: Tensor, nz: bool, page_size: int, name: str, piece: int | None = None) -> Tensor:
    """The cache as [pages, page size, ...], a view of its memory: rows as they are, or NZ's pieces put side by side
    ([pages, page size, pieces, n]). `piece`: n, by default that of the dtype.

    Raises ValueError for an NZ cache that is not contiguous, or whose tokens are not whole pieces."""
    if not nz:
        return cache
    pieces = piece or fractal(cache.dtype)
    per_page = cache[0].numel() if cache.shape[0] else 0
    if not cache.is_contiguous() or per_page % (page_size * pieces):
        raise ValueError(
            f"{name} must be contiguous in the NZ layout, its tokens of a multiple of {pieces} elements, got shape "
            f"{list(cache.shape)} and strides {list(cache.stride())}"
        )
    return cache.view(cache.shape[0], -1, page_size, pieces).transpose(1, 2)


def write(
    cache: Tensor,
    tokens: Tensor,
    slots: Tensor,
    *,
    nz: bool,
    page_size: int,
    name: str = "cache",
    piece: int | None = None,
) -> None:
    """tokens [T, heads * D] to the slots [T] of the cache, in place; negative slots are skipped."""
    pages = in_pages(cache, nz, page_size, name, piece)
    written, places = checked_slots(slots, cache.shape[0] * page_size, "the index")
    rows = tokens.reshape(len(written), -1)[written].to(cache.dtype)
    pages[places // page_size, places % page_size] = rows.reshape(len(places), *pages.shape[2:])
