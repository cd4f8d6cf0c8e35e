"""`npu_gather_pa_kv_cache(key_cache, value_cache, block_tables, seq_lens, key, value, ...)`: sequences out of paged caches.

    caches [pages, page size, heads, D], or [pages, heads * D / n, page size, n] where the result's shape says so
    block_tables [B, pages of a sequence] int32   seq_lens [B] int32: lengths; [B + 1] if is_seq_lens_cumsum: their running sum from 0
    seq_offset [B]: where in a sequence to start, a multiple of the page size   key, value [T, heads, D]: written

A page beyond the table or outside of the cache gives zeros, as in the golden function of op-plugin's test; rows of key and value behind
the last sequence stay. Source: op-plugin's C++ and that golden function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu


def gather_pa_kv_cache(
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    seq_offset: Tensor | None = None,
    is_seq_lens_cumsum: bool = False,
) -> None:
    """Writes to key and value. Raises ValueError for a cache whose shape fits neither layout."""
    lengths = seq_lens.long().diff() if is_seq_lens_cumsum else seq_lens.long()
    if bool((lengths < 0).any()):
        raise ValueError(f"seq_lens must not be negative, got {seq_lens.tolist()}")
    for name, cache, out in (("key_cache", key_cache, key), ("value_cache", value_cache, value)):
        nz = cache.dim() == 4 and cache.shape[2:] != out.shape[1:]
        if cache.dim() != 4 or (nz and cache.shape[1] * cache.shape[3] != out[0].numel()):
            raise ValueError(f"{name} must hold rows of {list(out.shape[1:])} in pages, got {list(cache.shape)}")
        pages = cache.transpose(1, 2) if nz else cache  # [pages, page size, ...]
        size = pages.shape[1]
        sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[: len(out)]
        start = (lengths.cumsum(0) - lengths)[sequence]
        place = torch.arange(len(sequence)) - start  # of each token in its sequence
        column = place // size + (0 if seq_offset is None else seq_offset.long()[sequence] // size)
        inside = column < block_tables.shape[1]
        page = torch.where(
            inside, block_tables.long()[sequence, column.clamp(max=block_tables.shape[1] - 1)], torch.tensor(-1)
        )
        known = (page >= 0) & (page < len(pages))
        rows = pages[page.clamp(0, len(pages) - 1), place % size].reshape(len(sequence), *out.shape[1:])
        out[: len(sequence)] = rows * known.view(-1, 1, 1).to(rows.dtype)


def gather_pa_kv_cache_functional(
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    seq_offset: Tensor | None = None,
    is_seq_lens_cumsum: bool = False,
) -> tuple[Tensor, Tensor]:
    """Copies of key and value with the sequences."""
    made = key.clone(), value.clone()
    gather_pa_kv_cache(
        key_cache,
        value_cache,
        block_tables,
        seq_lens,
        *made,
        seq_offset=seq_offset,
        is_seq_lens_cumsum=is_seq_lens_cumsum,
    )
    return made


OPERATOR = of_torch_npu("npu_gather_pa_kv_cache", gather_pa_kv_cache)
FUNCTIONAL_OPERATOR = of_torch_npu("npu_gather_pa_kv_cache_functional", gather_pa_kv_cache_functional)
