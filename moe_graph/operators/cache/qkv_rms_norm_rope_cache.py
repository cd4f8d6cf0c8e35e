"""`npu_qkv_rms_norm_rope_cache(qkv, q_gamma, k_gamma, cos, sin, index, q_out, k_cache, v_cache, qkv_size, head_nums, ...)`, in place.

    qkv [B * S, (Nq + Nk + Nv) * D]   qkv_size [B, S, Nq + Nk + Nv, D]   head_nums [Nq, Nk, Nv]   q_gamma, k_gamma [D]   cos, sin [B * S, D]
    q, k: RmsNorm over D, then turned by halves; v as it is
    q_out [B * S, Nq * D]: q   caches [pages, N * D / n, page size, n]: k and v at the slots index [B * S]; a negative one is skipped
    with k_scale [Nk, D], v_scale [Nv, D] and offsets: int8 caches of round(x / scale + offset), halves to even

Results: q, k and v before they are quantised, [B * S, N * D], if is_output_qkv, else nothing. No page:
sources are the golden function of op-plugin's test and op-plugin's C++. Float32 inside, rounded once. Served: cache_mode PA_NZ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from moe_graph.operators.cache import pages
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.normalization.rms_norm import rms_norm
from moe_graph.operators.position.rotation import turned
from moe_graph.operators.quantization.int8 import to_int8


def _into_cache(cache: Tensor, x: Tensor, scale: Tensor | None, offset: Tensor | None, index: Tensor) -> None:
    """x [T, N, D]"""
    if scale is not None:
        x = to_int8(x / scale.float() + (0 if offset is None else offset.float()))
    pages.write(cache, x.flatten(1), index, nz=True, page_size=cache.shape[2], piece=cache.shape[3])


def qkv_rms_norm_rope_cache(
    qkv: Tensor,
    q_gamma: Tensor,
    k_gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    q_out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    qkv_size: Sequence[int],
    head_nums: Sequence[int],
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_offset: Tensor | None = None,
    v_offset: Tensor | None = None,
    epsilon: float = 1e-6,
    cache_mode: str = "PA_NZ",
    is_output_qkv: bool = False,
) -> tuple[Tensor | None, ...]:
    """q, k, v before they are quantised, or three times None; q_out and the caches are written in place.

    Raises ValueError for sizes that do not fit."""
    if cache_mode != "PA_NZ":
        raise NotImplementedError(f"npu_qkv_rms_norm_rope_cache: cache_mode must be PA_NZ, got {cache_mode!r}")
    batch, length, heads, width = qkv_size
    if sum(head_nums) != heads or qkv.shape != (batch * length, heads * width):
        raise ValueError(
            f"qkv must be [{batch * length}, {heads * width}] and head_nums sum to {heads}, got {list(qkv.shape)} and "
            f"{list(head_nums)}"
        )
    q, k, v = qkv.float().view(-1, heads, width).split(list(head_nums), 1)  # [T, N, D]
    angles = cos.view(len(qkv), -1, width), sin.view(len(qkv), -1, width)
    q = turned(rms_norm(q, q_gamma, epsilon)[0], *angles)
    k = turned(rms_norm(k, k_gamma, epsilon)[0], *angles)
    q_out.copy_(q.flatten(1))
    _into_cache(k_cache, k, k_scale, k_offset, index)
    _into_cache(v_cache, v, v_scale, v_offset, index)
    if not is_output_qkv:
        return None, None, None
    return q.flatten(1).to(qkv.dtype), k.flatten(1).to(qkv.dtype), v.flatten(1).to(qkv.dtype)


def qkv_rms_norm_rope_cache_functional(
    qkv: Tensor,
    q_gamma: Tensor,
    k_gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    q_out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    qkv_size: Sequence[int],
    head_nums: Sequence[int],
    **options: Any,
) -> tuple[Tensor | None, ...]:
    """(q, k, v before they are quantised, copies of q_out and the caches with the tokens)."""
    written = q_out.clone(), k_cache.clone(), v_cache.clone()
    before = qkv_rms_norm_rope_cache(qkv, q_gamma, k_gamma, cos, sin, index, *written, qkv_size, head_nums, **options)
    return *before, *written


def _ge_qkv_rms_norm_rope_cache(
    qkv: Tensor,
    q_gamma: Tensor,
    k_gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    q_out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_offset: Tensor | None = None,
    v_offset: Tensor | None = None,
    *,
    qkv_size: list,
    head_nums: list,
    epsilon: float = 1e-6,
    cache_mode: str = "PA_NZ",
    is_output_qkv: bool = False,
) -> tuple[Tensor | None, ...]:
    before = qkv_rms_norm_rope_cache(
        qkv,
        q_gamma,
        k_gamma,
        cos,
        sin,
        index,
        q_out,
        k_cache,
        v_cache,
        qkv_size,
        head_nums,
        k_scale=k_scale,
        v_scale=v_scale,
        k_offset=k_offset,
        v_offset=v_offset,
        epsilon=epsilon,
        cache_mode=cache_mode,
        is_output_qkv=True,
    )
    return q_out, k_cache, v_cache, *before


OPERATOR = of_torch_npu("npu_qkv_rms_norm_rope_cache", qkv_rms_norm_rope_cache)
FUNCTIONAL_OPERATOR = of_torch_npu(
    "npu_qkv_rms_norm_rope_cache_functional",
    qkv_rms_norm_rope_cache_functional,
    ge=[GeKernel("QkvRmsNormRopeCache", _ge_qkv_rms_norm_rope_cache, assigns=("q_out", "k_cache", "v_cache"))],
)
