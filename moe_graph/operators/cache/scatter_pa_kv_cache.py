"""`npu_scatter_pa_kv_cache(key, value, key_cache, value_cache, slot_mapping, ...)`: tokens to the slots of paged caches, in place.

    key, value [T, heads, D]   slot_mapping [T] int32, int64; a negative slot is skipped
    cache_mode "Norm" or None  caches [pages, page size, heads, D]
    cache_mode "PA_NZ"         caches [pages, heads * D / n, page size, n]

Sources: the operator's page in the torch_npu documentation and the golden functions of its test; GE ScatterPaKvCache. Not served: the
compressed form (key of four dimensions with compress_lens, compress_seq_offsets, seq_lens).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moe_graph.operators.cache import pages
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel


def scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> None:
    """Writes to key_cache and value_cache. Raises ValueError for shapes that do not fit and slots beyond the cache."""
    if any(tensor is not None for tensor in (compress_lens, compress_seq_offsets, seq_lens)):
        raise NotImplementedError(
            "npu_scatter_pa_kv_cache: the compressed form (compress_lens, seq_lens) is not served"
        )
    if cache_mode not in (None, "Norm", "PA_NZ"):
        raise ValueError(f"cache_mode must be Norm or PA_NZ, got {cache_mode!r}")
    nz = cache_mode == "PA_NZ"
    for name, tokens, cache in (("key_cache", key, key_cache), ("value_cache", value, value_cache)):
        per_slot = cache[0].numel() // cache.shape[2 if nz else 1] if cache.shape[0] else tokens[0].numel()
        if cache.dim() != 4 or tokens.dim() != 3 or tokens[0].numel() != per_slot:
            raise ValueError(
                f"{name} must have four dimensions and {tokens[0].numel()} elements a slot, got {list(cache.shape)}"
            )
        size, piece = (cache.shape[2], cache.shape[3]) if nz else (cache.shape[1], None)
        pages.write(cache, tokens.flatten(1), slot_mapping, nz=nz, page_size=size, name=name, piece=piece)


def scatter_pa_kv_cache_functional(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Copies of the caches with the tokens."""
    caches = key_cache.clone(), value_cache.clone()
    scatter_pa_kv_cache(key, value, *caches, slot_mapping, **options)
    return caches


def _ge_scatter_pa_kv_cache(
    key: Tensor,
    key_cache: Tensor,
    slot_mapping: Tensor,
    value: Tensor,
    value_cache: Tensor,
    compress_lens: Tensor | None = None,
    compress_seq_offset: Tensor | None = None,
    seq_lens: Tensor | None = None,
    *,
    cache_mode: str = "Norm",
    scatter_mode: str = "None",
    strides: list = (1, 1),  # type: ignore[assignment]
    offsets: list = (0, 0),  # type: ignore[assignment]
) -> tuple[Tensor, Tensor]:
    if scatter_mode != "None" or list(strides) != [1, 1] or list(offsets) != [0, 0]:
        raise NotImplementedError(
            f"scatter_mode must be None, strides 1, offsets 0, got {scatter_mode!r}, {list(strides)}, {list(offsets)}"
        )
    scatter_pa_kv_cache(
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        compress_lens=compress_lens,
        compress_seq_offsets=compress_seq_offset,
        seq_lens=seq_lens,
        cache_mode=cache_mode,
    )
    return key_cache, value_cache


OPERATOR = of_torch_npu("npu_scatter_pa_kv_cache", scatter_pa_kv_cache)
FUNCTIONAL_OPERATOR = of_torch_npu(
    "npu_scatter_pa_kv_cache_functional",
    scatter_pa_kv_cache_functional,
    ge=[GeKernel("ScatterPaKvCache", _ge_scatter_pa_kv_cache, assigns=("key_cache", "value_cache"))],
)
