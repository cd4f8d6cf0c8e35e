"""`npu_kv_rmsnorm_rope_cache(kv, gamma, cos, sin, index, k_cache, ckv_cache, ...)` and `_v2`: MLA's compressed keys into their caches.

    kv [B, 1, S, R + D]   gamma [R]   cos, sin [B, 1, S, D]   ckv = RmsNorm of the first R elements   k = rope of the last D: even elements
    first, odd ones behind them, turned by halves
    with v [B, 1, S, Dv] (second form): kv [B, 1, S, R] is normalized whole and its first D elements are turned: that is k; ckv = v
    Norm                    caches [B, 1, length, D or R]; index [B, S]: the place in each sequence
    PA, PA_BNSD, PA_NZ      caches [pages, page size, 1, D or R]; index [B * S]: a slot for each token; NZ as in `pages`
    PA_BLK_BNSD, PA_BLK_NZ  index [B * ceil(S / page size)]: the first slot of each page's tokens
    with k_rope_scale [D] and c_kv_scale [R], float32: int8 caches of round(x * scale + offset), halves to even

Results: (k_cache, ckv_cache, k, ckv) of the first form, the caches being the arguments; (k, ckv) of _v2. A negative index is skipped.
k and ckv are given in any case; a device writes them where is_output_kv. Sources: the operator's page in the torch_npu documentation,
the golden function of op-plugin's test, op-plugin's C++. Float32 inside, rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.cache import pages
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed
from moe_graph.operators.normalization.rms_norm import rms_norm
from moe_graph.operators.position.rotation import turned
from moe_graph.operators.quantization.int8 import to_int8

MODES = ("Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ")


def _quantised(x: Tensor, scale: Tensor | None, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    if scale is None:
        return x.to(dtype)
    return to_int8(x * scale.float() + (0 if offset is None else offset.float()))


def slots_of_blocks(index: Tensor, batch: int, length: int, page_size: int) -> Tensor:
    """index [batch * blocks]: the first slot of each block of a sequence -> the slot of each token [batch * length], -1 to skip."""
    blocks = -(-length // page_size)
    if index.numel() != batch * blocks:
        raise ValueError(f"index must have {batch * blocks} elements, a block of {page_size} each, got {index.numel()}")
    place = torch.arange(length)
    first = index.reshape(batch, blocks).long()[:, place // page_size]
    return torch.where(first < 0, first, first // page_size * page_size + place % page_size).reshape(-1)


def write_to_cache(cache: Tensor, tokens: Tensor, index: Tensor, cache_mode: str, name: str) -> None:
    """tokens [B, 1, S, D] into the cache, in place, as the module's document says."""
    batch, _, length, width = tokens.shape
    if cache.dim() != 4 or cache.shape[-1] != width:
        raise ValueError(f"{name} must have four dimensions, the last of size {width}, got {list(cache.shape)}")
    if cache_mode == "Norm":
        # Each sequence has pages of its own: one, as long as the cache.
        offset = torch.arange(batch).unsqueeze(1) * cache.shape[2]
        slots = torch.where(index < 0, index, index + offset)
        pages.checked_slots(index, cache.shape[2], "index")
        pages.write(cache.transpose(1, 2), tokens.flatten(0, 2), slots, nz=False, page_size=cache.shape[2], name=name)
        return
    size = cache.shape[1]
    slots = slots_of_blocks(index, batch, length, size) if "BLK" in cache_mode else index
    pages.write(cache, tokens.flatten(0, 2), slots, nz=cache_mode.endswith("NZ"), page_size=size, name=name)


def kv_rmsnorm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    *,
    k_rope_scale: Tensor | None = None,
    c_kv_scale: Tensor | None = None,
    k_rope_offset: Tensor | None = None,
    c_kv_offset: Tensor | None = None,
    v: Tensor | None = None,
    epsilon: float = 1e-5,
    cache_mode: str = "Norm",
    is_output_kv: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(k_cache, ckv_cache, k, ckv), the caches written in place. Raises ValueError for shapes and modes that do not fit."""
    if cache_mode not in MODES:
        raise ValueError(f"cache_mode must be one of {', '.join(MODES)}, got {cache_mode!r}")
    rank, width = gamma.shape[0], cos.shape[-1]
    if kv.dim() != 4 or kv.shape[1] != 1 or kv.shape[-1] != (rank if v is not None else rank + width):
        raise ValueError(f"kv must be [B, 1, S, {rank if v is not None else rank + width}], got {list(kv.shape)}")
    wide = kv.float()
    normed, _ = rms_norm(wide[..., :rank], gamma, epsilon)
    if v is None:
        k, ckv = turned(wide[..., rank:], cos, sin, "interleave-half"), normed
    else:
        k = torch.cat([turned(normed[..., :width], cos, sin, "interleave-half"), normed[..., width:]], -1)
        ckv = v.float()
    write_to_cache(k_cache, _quantised(k, k_rope_scale, k_rope_offset, k_cache.dtype), index, cache_mode, "k_cache")
    write_to_cache(ckv_cache, _quantised(ckv, c_kv_scale, c_kv_offset, ckv_cache.dtype), index, cache_mode, "ckv_cache")
    return k_cache, ckv_cache, k.to(kv.dtype), ckv.to(kv.dtype)


def kv_rmsnorm_rope_cache_v2(
    *args: Tensor, k_cache_dtype: int | None = None, ckv_cache_dtype: int | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """(k, ckv); the caches are written in place."""
    if k_cache_dtype is not None or ckv_cache_dtype is not None:
        raise NotImplementedError("npu_kv_rmsnorm_rope_cache_v2: k_cache_dtype and ckv_cache_dtype are not served")
    return kv_rmsnorm_rope_cache(*args, **options)[2:]


def kv_rmsnorm_rope_cache_v2_functional(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(k, ckv, copies of the caches with the tokens)."""
    caches = k_cache.clone(), ckv_cache.clone()
    return *kv_rmsnorm_rope_cache_v2(kv, gamma, cos, sin, index, *caches, **options), *caches


OPERATOR = of_torch_npu(
    "npu_kv_rmsnorm_rope_cache",
    kv_rmsnorm_rope_cache,
    ge=[GeKernel("KvRmsNormRopeCache", renamed(kv_rmsnorm_rope_cache), assigns=("k_cache", "ckv_cache"))],
)
V2_OPERATOR = of_torch_npu("npu_kv_rmsnorm_rope_cache_v2", kv_rmsnorm_rope_cache_v2)
V2_FUNCTIONAL_OPERATOR = of_torch_npu("npu_kv_rmsnorm_rope_cache_v2_functional", kv_rmsnorm_rope_cache_v2_functional)
