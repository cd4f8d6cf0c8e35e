"""`npu_mla_prolog`, `_v2` and `_v3`: what comes before MLA's attention, from the token to its queries and its places in the caches.

    token_x [T, He] or [B, S, He]   weight_dq [He, Hcq]   weight_uq_qr [Hcq, N * (D + Dr)]   weight_uk [N, D, Hckv]
    weight_dkv_kr [He, Hckv + Dr]   gammas [Hcq], [Hckv]   rope_sin, rope_cos [T, Dr] or [B, S, Dr]
    kv_cache [pages, page size, 1, Hckv], kr_cache [pages, page size, 1, Dr]; cache_index [T] or [B, S]: the slot of each token
    cache_mode PA_BSND, PA_NZ (as in `cache.pages`); of v3 also PA_BLK_BSND, PA_BLK_NZ (the first slot of each page's tokens), BSND, TND

    c = RmsNorm(x @ weight_dq) * qc_qr_scale     query = (c @ uq) @ weight_uk [.., N, Hckv]     query_rope = rope(c @ qr) [.., N, Dr]
    kv_cache: RmsNorm(x @ dkv) * kc_scale        kr_cache: rope(x @ kr)        rope: even elements first, odd ones behind them, by halves

    weight_quant_mode 0: bfloat16   1: int8 weight_uq_qr, with dequant_scale_w_uq_qr and a dynamic int8 c (* smooth_scales_cq)
    2: all of it int8, with dequant_scale_x and dequant_scale_w_*     v1 and v2 tell the mode by what is int8
    kv_cache_quant_mode 1: int8 kv_cache, one quant_scale_ckv; the query becomes int8 by row and head, dequant_scale_q_nope its scale, and
    query_rope is divided by it, with weight_quant_mode 2     2: a scale for each element (quant_scale_ckv, quant_scale_ckr), int8 kr_cache

Results: query, query_rope, then v1: the caches; v2: the caches and dequant_scale_q_nope; v3: dequant_scale_q_nope, query_norm,
dequant_scale_q_norm. What a mode does not produce is [0] here, unspecified on a device. A negative slot is skipped. Sources: the pages
in the torch_npu documentation, the golden functions of op-plugin's tests, torch_npu's fake implementations. Matrix products are rounded to
bfloat16 where the golden functions do. Not served: float8, hifloat8 and mx weights, kv_cache_quant_mode 3, caches stored together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.attention.mla_prolog_compute import Scales, Weights, prolog
from moe_graph.operators.cache.kv_rmsnorm_rope_cache import slots_of_blocks
from moe_graph.operators.cache.pages import write
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed, with_results

CACHE_MODES = ("PA_BSND", "PA_NZ", "PA_BLK_BSND", "PA_BLK_NZ", "BSND", "TND")


def _write(
    cache: Tensor, rows: Tensor, index: Tensor | None, mode: str, tokens: Tensor, lengths: Tensor | None, name: str
) -> None:
    if mode in ("BSND", "TND"):
        cache.copy_(rows.view(cache.shape))
        return
    if index is None:
        raise ValueError(f"npu_mla_prolog: cache_index must be given with cache_mode {mode!r}")
    size = cache.shape[1]
    if "BLK" in mode:
        index = _slots_of_tokens(index, tokens, lengths, size)
    write(cache, rows, index, nz=mode.endswith("NZ"), page_size=size, name=name)


def _slots_of_tokens(index: Tensor, tokens: Tensor, lengths: Tensor | None, size: int) -> Tensor:
    """index of pages [B, ceil(S / size)], or by sequence one after another -> the slot of each token."""
    first = index.reshape(-1).long() * size
    if tokens.dim() == 3:
        return slots_of_blocks(first, tokens.shape[0], tokens.shape[1], size)
    if lengths is None:
        raise ValueError("npu_mla_prolog_v3: actual_seq_len must be given with token_x [T, He] and a PA_BLK cache_mode")
    sizes = lengths.long().diff(prepend=torch.zeros(1, dtype=torch.int64))
    blocks = (sizes + size - 1) // size
    sequence = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    place = torch.arange(len(sequence)) - (sizes.cumsum(0) - sizes)[sequence]
    return first[(blocks.cumsum(0) - blocks)[sequence] + place // size] + place % size


def mla_prolog_v3(
    token_x: Tensor,
    weight_dq: Tensor,
    weight_uq_qr: Tensor,
    weight_uk: Tensor,
    weight_dkv_kr: Tensor,
    rmsnorm_gamma_cq: Tensor,
    rmsnorm_gamma_ckv: Tensor,
    rope_sin: Tensor,
    rope_cos: Tensor,
    kv_cache: Tensor,
    kr_cache: Tensor,
    *,
    cache_index: Tensor | None = None,
    dequant_scale_x: Tensor | None = None,
    dequant_scale_w_dq: Tensor | None = None,
    dequant_scale_w_uq_qr: Tensor | None = None,
    dequant_scale_w_dkv_kr: Tensor | None = None,
    quant_scale_ckv: Tensor | None = None,
    quant_scale_ckr: Tensor | None = None,
    smooth_scales_cq: Tensor | None = None,
    actual_seq_len: Tensor | None = None,
    k_nope_clip_alpha: Tensor | None = None,
    rmsnorm_epsilon_cq: float = 1e-5,
    rmsnorm_epsilon_ckv: float = 1e-5,
    cache_mode: str = "PA_BSND",
    query_norm_flag: bool = False,
    weight_quant_mode: int = 0,
    kv_cache_quant_mode: int = 0,
    query_quant_mode: int = 0,
    ckvkr_repo_mode: int = 0,
    quant_scale_repo_mode: int = 0,
    tile_size: int = 128,
    qc_qr_scale: float = 1.0,
    kc_scale: float = 1.0,
    token_x_dtype: int | None = None,
    weight_dq_dtype: int | None = None,
    weight_uq_qr_dtype: int | None = None,
    weight_dkv_kr_dtype: int | None = None,
    kv_cache_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """query, query_rope, dequant_scale_q_nope, query_norm, dequant_scale_q_norm; the caches are written in place.

    Raises ValueError for arguments that do not fit each other, NotImplementedError for the forms that the document names."""
    for name, value, served in (
        ("weight_quant_mode", weight_quant_mode, (0, 1, 2)),
        ("kv_cache_quant_mode", kv_cache_quant_mode, (0, 1, 2)),
        ("query_quant_mode", query_quant_mode, (0, 1)),
        ("ckvkr_repo_mode", ckvkr_repo_mode, (0,)),
        ("quant_scale_repo_mode", quant_scale_repo_mode, (0,)),
        ("cache_mode", cache_mode, CACHE_MODES),
    ):
        if value not in served:
            raise NotImplementedError(f"npu_mla_prolog: {name} must be one of {list(served)}, got {value!r}")
    weights = Weights(weight_dq, weight_uq_qr, weight_uk, weight_dkv_kr, rmsnorm_gamma_cq, rmsnorm_gamma_ckv)
    scales = Scales(
        dequant_scale_x,
        dequant_scale_w_dq,
        dequant_scale_w_uq_qr,
        dequant_scale_w_dkv_kr,
        quant_scale_ckv if kv_cache_quant_mode else None,
        quant_scale_ckr if kv_cache_quant_mode == 2 else None,
        smooth_scales_cq,
    )
    if kv_cache_quant_mode and scales.ckv is None:
        raise ValueError("npu_mla_prolog: quant_scale_ckv must be given with an int8 kv_cache")
    lead = token_x.shape[:-1]
    found, rows, rope_rows = prolog(
        token_x.flatten(0, -2),
        weights,
        rope_sin.flatten(0, -2),
        rope_cos.flatten(0, -2),
        scales,
        (rmsnorm_epsilon_cq, rmsnorm_epsilon_ckv),
        (qc_qr_scale, kc_scale),
        quantise_query=weight_quant_mode == 2 and kv_cache_quant_mode == 1,
    )
    _write(kv_cache, rows, cache_index, cache_mode, token_x, actual_seq_len, "kv_cache")
    _write(kr_cache, rope_rows, cache_index, cache_mode, token_x, actual_seq_len, "kr_cache")
    nothing = found.norm.new_empty(0)
    return (
        found.query.unflatten(0, lead),
        found.query_rope.unflatten(0, lead),
        found.query_scale,
        found.norm.unflatten(0, lead) if query_norm_flag else nothing,
        found.norm_scale if query_norm_flag else torch.empty(0),
    )


def mla_prolog_v2(
    token_x: Tensor,
    weight_dq: Tensor,
    weight_uq_qr: Tensor,
    weight_uk: Tensor,
    weight_dkv_kr: Tensor,
    rmsnorm_gamma_cq: Tensor,
    rmsnorm_gamma_ckv: Tensor,
    rope_sin: Tensor,
    rope_cos: Tensor,
    cache_index: Tensor,
    kv_cache: Tensor,
    kr_cache: Tensor,
    *,
    dequant_scale_x: Tensor | None = None,
    dequant_scale_w_dq: Tensor | None = None,
    dequant_scale_w_uq_qr: Tensor | None = None,
    dequant_scale_w_dkv_kr: Tensor | None = None,
    quant_scale_ckv: Tensor | None = None,
    quant_scale_ckr: Tensor | None = None,
    smooth_scales_cq: Tensor | None = None,
    rmsnorm_epsilon_cq: float = 1e-5,
    rmsnorm_epsilon_ckv: float = 1e-5,
    cache_mode: str = "PA_BSND",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """query, query_rope, the caches, written in place, and dequant_scale_q_nope [T, N, 1]; [1] where the query is not quantised."""
    weights_int8 = weight_dq.dtype == torch.int8, weight_uq_qr.dtype == torch.int8
    query, query_rope, scale, _, _ = mla_prolog_v3(
        token_x,
        weight_dq,
        weight_uq_qr,
        weight_uk,
        weight_dkv_kr,
        rmsnorm_gamma_cq,
        rmsnorm_gamma_ckv,
        rope_sin,
        rope_cos,
        kv_cache,
        kr_cache,
        cache_index=cache_index,
        weight_quant_mode={(False, False): 0, (False, True): 1, (True, True): 2}.get(weights_int8, -1),
        kv_cache_quant_mode=0 if kv_cache.dtype != torch.int8 else 1 if kr_cache.dtype != torch.int8 else 2,
        dequant_scale_x=dequant_scale_x,
        dequant_scale_w_dq=dequant_scale_w_dq,
        dequant_scale_w_uq_qr=dequant_scale_w_uq_qr,
        dequant_scale_w_dkv_kr=dequant_scale_w_dkv_kr,
        quant_scale_ckv=quant_scale_ckv,
        quant_scale_ckr=quant_scale_ckr,
        smooth_scales_cq=smooth_scales_cq,
        rmsnorm_epsilon_cq=rmsnorm_epsilon_cq,
        rmsnorm_epsilon_ckv=rmsnorm_epsilon_ckv,
        cache_mode=cache_mode,
    )
    return query, query_rope, kv_cache, kr_cache, scale if scale.numel() else torch.zeros(1)


def mla_prolog_v3_functional(
    token_x: Tensor,
    weight_dq: Tensor,
    weight_uq_qr: Tensor,
    weight_uk: Tensor,
    weight_dkv_kr: Tensor,
    rmsnorm_gamma_cq: Tensor,
    rmsnorm_gamma_ckv: Tensor,
    rope_sin: Tensor,
    rope_cos: Tensor,
    kv_cache: Tensor,
    kr_cache: Tensor,
    **options: Any,
) -> tuple[Tensor, ...]:
    """As mla_prolog_v3, and behind its results copies of the caches with the tokens."""
    caches = kv_cache.clone(), kr_cache.clone()
    arguments = (token_x, weight_dq, weight_uq_qr, weight_uk, weight_dkv_kr, rmsnorm_gamma_cq, rmsnorm_gamma_ckv)
    return *mla_prolog_v3(*arguments, rope_sin, rope_cos, *caches, **options), *caches


def _with_caches(found: tuple[Tensor, ...], arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """The results of mla_prolog_v3 as GE orders them: the caches are its outputs, too."""
    query, query_rope, *others = found
    return query, query_rope, arguments["kv_cache"], arguments["kr_cache"], *others


_CACHES = ("kv_cache", "kr_cache")
_DTYPES = ("token_x_dtype", "weight_dq_dtype", "weight_uq_qr_dtype", "weight_dkv_kr_dtype", "kv_cache_dtype")
# The first form gives the caches and no scale.
mla_prolog = with_results(mla_prolog_v2, lambda found, _: found[:4])
OPERATOR = of_torch_npu("npu_mla_prolog", mla_prolog, ge=[GeKernel("MlaProlog", renamed(mla_prolog), assigns=_CACHES)])
V2_OPERATOR = of_torch_npu(
    "npu_mla_prolog_v2", mla_prolog_v2, ge=[GeKernel("MlaPrologV2", renamed(mla_prolog_v2), assigns=_CACHES)]
)
V3_OPERATOR = of_torch_npu(
    "npu_mla_prolog_v3",
    mla_prolog_v3,
    ge=[GeKernel("MlaPrologV3", with_results(renamed(mla_prolog_v3, without=_DTYPES), _with_caches), assigns=_CACHES)],
)
V3_FUNCTIONAL_OPERATOR = of_torch_npu("npu_mla_prolog_v3_functional", mla_prolog_v3_functional)
