"""ATB's `_npu_reshape_and_cache(key, value, key_cache, value_cache, slot_indices)` and `_npu_reshape_and_cache_siso` of keys alone.

    key [T, N, D], value [T, N, Dv]   slot_indices [T]: slot s is row s % block_size of block s // block_size; below 0: left out
    key_cache [blocks, block_size, N, D], or in the format NZ [blocks, N * D / c, block_size, c], c = 32 of int8 and 16 of wider
    elements; changed. The caches may have different dtypes and formats.

Source: op-plugin's C++ (op_plugin/ops/atb) and tests.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.cache import pages
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check, _check_siso = Checks("_npu_reshape_and_cache"), Checks("_npu_reshape_and_cache_siso")


def reshape_and_cache(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor) -> None:
    """Both caches, changed. Raises ValueError on arguments that the module's document excludes."""
    _put(_check, "key", key, key_cache, slot_indices)
    _put(_check, "value", value, value_cache, slot_indices)


def reshape_and_cache_siso(key: Tensor, key_cache: Tensor, slot_indices: Tensor) -> None:
    """The cache, changed. Raises ValueError on arguments that the module's document excludes."""
    _put(_check_siso, "key", key, key_cache, slot_indices)


def _put(check: Checks, name: str, rows: Tensor, cache: Tensor, slots: Tensor) -> None:
    check.rank(name, rows, (3,), "[T, N, D]")
    check.rank(f"{name}_cache", cache, (4,), "[blocks, block_size, N, D] or NZ [blocks, N * D / c, block_size, c]")
    check.dtype(f"{name}_cache", cache, (rows.dtype,))
    if tuple(slots.shape) != (len(rows),):
        check.refuse("slot_indices", f"of shape [{len(rows)}]", f"shape {tuple(slots.shape)}")
    strip = 32 if rows.element_size() == 1 else 16
    width = rows.shape[1:].numel()
    if tuple(cache.shape[2:]) == tuple(rows.shape[1:]):
        by_token = cache
    elif cache.shape[3] == strip and cache.shape[1] * strip == width:
        by_token = cache.transpose(1, 2)
    else:
        wanted = f"[blocks, block_size, {rows.shape[1]}, {rows.shape[2]}] or NZ [blocks, {width // strip}, block_size, {strip}]"
        check.refuse(f"{name}_cache", wanted, tuple(cache.shape))
    count = by_token.shape[:2].numel()
    if bool((slots >= count).any()):
        check.refuse("slot_indices", f"below {count}, the cache's slots", slots.tolist())
    pages.write(by_token, rows, slots, nz=False, page_size=by_token.shape[1])


OPERATOR = of_torch_npu("_npu_reshape_and_cache", reshape_and_cache, namespace="atb")
SISO_OPERATOR = of_torch_npu("_npu_reshape_and_cache_siso", reshape_and_cache_siso, namespace="atb")
