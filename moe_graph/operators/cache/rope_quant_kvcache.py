"""`npu_rope_quant_kvcache` and `npu_dequant_rope_quant_kvcache`: q, k and v of one tensor, turned, and k and v written to int8 caches.

    x [B, S, H] or [B, H] float16, bfloat16; or int32 (dequant) with weight_scale [H], activation_scale [B * S], bias [H]
    size_splits  the widths of q, k and v in H   cos, sin [B, S, 1, D] or [B, 1, D]: half rotation
    k_cache, v_cache [blocks, size, N, D] int8   scale_k, scale_v, offset_k, offset_v [N, D] or [D]
    int32 x: x * weight_scale * activation_scale, an int32 bias added before, another one behind

    written: round(k / scale_k + offset_k), halves to even, and v the same: by cache_mode
        "contiguous"  the S tokens of row i to k_cache[i, indices[i] :]; indices [B]
        "page"        token t to place indices[t] of the cache, all blocks in a row; indices [B * S]

    -> q [B, S, Nq, D], k, v [B, S, N, D] of cos' dtype (kv_output false: no elements), k_cache, v_cache

Sources: the document of aclnnDequantRopeQuantKvcache (ops-transformer, posembedding/dequant_rope_quant_kvcache), its kernel for the
division by the scale. Float32 inside, rounded once: what is written is made of the unrounded k and v. torchair's converters take cache_mode
and leave it out of the node: in a graph it is "contiguous". Not served: dynamic scales (quant_mode 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.position.rotation import turned
from moe_graph.operators.quantization import destination
from moe_graph.operators.quantization.int8 import INT8_MAX, check_values

_check = Checks("npu_rope_quant_kvcache")
Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def rope_quant_kvcache(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    indices: Tensor,
    scale_k: Tensor,
    scale_v: Tensor,
    size_splits: Sequence[int],
    *,
    offset_k: Tensor | None = None,
    offset_v: Tensor | None = None,
    quant_mode: int = 0,
    input_layout: str = "BSND",
    kv_output: bool = False,
    cache_mode: str = "contiguous",
) -> Results:
    """q, k, v and the caches, which are written to. Raises ValueError for arguments that do not fit each other."""
    _check.rank("x", x, (2, 3), "[B, S, H] or [B, H]")
    _check.rank("k_cache", k_cache, (4,), "[blocks, size, N, D]")
    _check.value("input_layout", input_layout, ("BSND",))
    _check.value("cache_mode", cache_mode, ("contiguous", "page"))
    if quant_mode != 0:
        raise NotImplementedError(f"npu_rope_quant_kvcache: quant_mode must be 0 (static), got {quant_mode}")
    if sum(size_splits) != x.shape[-1] or len(size_splits) != 3:
        _check.refuse("size_splits", f"three widths that make up H = {x.shape[-1]}", list(size_splits))
    heads = x.float().unflatten(-1, (-1, k_cache.shape[-1]))  # [..., heads, D]
    q, k, v = heads.split([width // k_cache.shape[-1] for width in size_splits], -2)
    cosines, sines = (angle.float().reshape(*x.shape[:-1], 1, -1) for angle in (cos, sin))
    q, k = turned(q, cosines, sines), turned(k, cosines, sines)
    for cache, value, scale, offset in ((k_cache, k, scale_k, offset_k), (v_cache, v, scale_v, offset_v)):
        steps = value / _of_heads(scale, value)
        steps = steps if offset is None else steps + _of_heads(offset, value)
        _write(cache, destination.rounded(steps, INT8_MAX), indices, cache_mode)
    outputs = (k.to(cos.dtype), v.to(cos.dtype)) if kv_output else (torch.empty(0, dtype=cos.dtype),) * 2
    return q.to(cos.dtype), outputs[0], outputs[1].clone(), k_cache, v_cache


def _of_heads(parameter: Tensor, value: Tensor) -> Tensor:
    """[N, D] or [D], for each head or for all."""
    return parameter.float().reshape(-1, value.shape[-1])


def _write(cache: Tensor, values: Tensor, indices: Tensor, mode: str) -> None:
    """values [B, S, N, D] or [B, N, D] into the cache."""
    places = indices.long().reshape(-1)
    blocks, size = cache.shape[:2]
    tokens = values.reshape(-1, *values.shape[-2:])
    expected = len(tokens) if mode == "page" else len(values)
    _check.size(len(places) == expected, "indices", f"of {expected} places with cache_mode {mode!r}", indices)
    if mode == "page":
        inside = ((places >= 0) & (places < blocks * size)).all()
        check_values(_check, "indices", indices, inside, f"from 0 to {blocks * size - 1}")
        cache.view(-1, *cache.shape[2:])[places] = tokens
        return
    length = len(tokens) // len(values)
    inside = ((places >= 0) & (places + length <= size)).all()
    check_values(_check, "indices", indices, inside, f"from 0 to {size - length}, where {length} tokens have room")
    rows = torch.arange(len(values)).repeat_interleave(length)
    cache[rows, (places.unsqueeze(1) + torch.arange(length)).reshape(-1)] = tokens


def dequant_rope_quant_kvcache(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    indices: Tensor,
    scale_k: Tensor,
    scale_v: Tensor,
    size_splits: Sequence[int],
    *,
    offset_k: Tensor | None = None,
    offset_v: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_mode: int = 0,
    input_layout: str = "BSND",
    kv_output: bool = False,
    cache_mode: str = "contiguous",
) -> Results:
    """The same of int32 x. Raises ValueError for int32 x without weight_scale."""
    if x.dtype == torch.int32:
        if weight_scale is None:
            _check.refuse("weight_scale", "given for int32 x", None)
        assert weight_scale is not None
        if bias is not None and bias.dtype == torch.int32:
            x, bias = x + bias, None
        x = x.float() * weight_scale.float().reshape(-1)
        if activation_scale is not None:
            x = x * activation_scale.float().reshape(*x.shape[:-1], 1)
        x = x if bias is None else x + bias.float()
    return rope_quant_kvcache(
        x,
        cos,
        sin,
        k_cache,
        v_cache,
        indices,
        scale_k,
        scale_v,
        size_splits,
        offset_k=offset_k,
        offset_v=offset_v,
        quant_mode=quant_mode,
        input_layout=input_layout,
        kv_output=kv_output,
        cache_mode=cache_mode,
    )


def _ge_dequant_rope_quant_kvcache(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    indices: Tensor,
    scale_k: Tensor,
    scale_v: Tensor,
    offset_k: Tensor | None = None,
    offset_v: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    size_splits: list[int],
    quant_mode: str = "static",
    layout: str = "BSND",
    kv_output: bool = False,
    cache_mode: str = "contiguous",
) -> Results:
    """GE DequantRopeQuantKvcache, which both operators lower to."""
    return dequant_rope_quant_kvcache(
        x,
        cos,
        sin,
        k_cache,
        v_cache,
        indices,
        scale_k,
        scale_v,
        size_splits,
        offset_k=offset_k,
        offset_v=offset_v,
        weight_scale=weight_scale,
        activation_scale=activation_scale,
        bias=bias,
        quant_mode=0 if quant_mode == "static" else 1,
        input_layout=layout,
        kv_output=kv_output,
        cache_mode=cache_mode,
    )


OPERATOR = of_torch_npu("npu_rope_quant_kvcache", rope_quant_kvcache)
DEQUANT_OPERATOR = of_torch_npu(
    "npu_dequant_rope_quant_kvcache",
    dequant_rope_quant_kvcache,
    ge=[GeKernel("DequantRopeQuantKvcache", _ge_dequant_rope_quant_kvcache, assigns=("k_cache", "v_cache"))],
)
