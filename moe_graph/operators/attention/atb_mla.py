"""ATB's `npu_multi_head_latent_attention(q_nope, q_rope, ctkv, k_rope, ...)`: one query of each sequence over MLA's paged caches.

    q_nope [B, N, D], q_rope [B, N, R]   ctkv [blocks, block_size, K, D]: keys and values in one   k_rope [blocks, block_size, K, R]
    block_tables [B, blocks] int32   context_lens [B]: the keys of each sequence
    cache_mode  krope_ctkv    float16 or bfloat16
                nzcache       the same in NZ, [blocks, K*D / 16, block_size, 16], [blocks, K*R / 16, block_size, 16]
                int8_nzcache  q_nope and ctkv int8, ctkv [blocks, K*D / 32, block_size, 32]; qk_descale, pv_descale [N] float32: scores are
                              q_nope @ ctkv * qk_descale + q_rope @ k_rope; the probabilities become int8 with a scale of their own, the
                              row's largest / 127; their product with ctkv is * pv_descale
    -> output [B, N, D] like q_rope; with return_lse and calc_type_ring lse [B, N, 1] like q_rope, else None

..._get_workspace gives the memory that the kernel works in: the reference needs none, so [0] of uint8; `workspace` is not looked at.

Float32 inside, rounded once. The kernel makes the probabilities of int8_nzcache int8 block by block, here it is row by row.
Sources: op-plugin's docstring (op_plugin/python/atb/_atb_api_docs.py), C++ and tests. Not served, as the docstring does not have them:
other mask_type than undefined, calc_type_spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.attention.atb_flash_attention import write
from moe_graph.operators.attention.atb_paged_attention import quantised_probabilities, workspace
from moe_graph.operators.attention.core import attend_with_sums, log_sum
from moe_graph.operators.attention.paged import Pages
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_multi_head_latent_attention")
_FLOATS = (torch.float16, torch.bfloat16)
_ROWS, _NZ, _INT8_NZ = "krope_ctkv", "nzcache", "int8_nzcache"
_RING = "calc_type_ring"


def _attention(
    q_nope: Tensor,
    q_rope: Tensor,
    ctkv: Tensor,
    k_rope: Tensor,
    block_tables: Tensor,
    context_lens: Sequence[int],
    q_headnum: int,
    qk_scale: float,
    kv_headnum: int,
    *,
    mask: Tensor | None = None,
    qseqlen: Sequence[int] | None = None,
    qk_descale: Tensor | None = None,
    pv_descale: Tensor | None = None,
    mask_type: str | None = None,
    calc_type: str | None = None,
    cache_mode: str | None = None,
) -> tuple[Tensor, Tensor]:
    """output and lse, float32. Raises ValueError on arguments that the module's document excludes."""
    cache_mode = _ROWS if cache_mode is None else cache_mode
    _check.value("mask_type", mask_type, (None, "undefined"))
    _check.value("calc_type", calc_type, (None, "calc_type_undefined", _RING))
    _check.value("cache_mode", cache_mode, (_ROWS, _NZ, _INT8_NZ))
    _check.absent("mask", mask, "with mask_type undefined")
    _check.absent("qseqlen", qseqlen, "with calc_type_undefined and calc_type_ring")
    quantised = cache_mode == _INT8_NZ
    _check.dtype("q_rope", q_rope, _FLOATS)
    _check.dtype("k_rope", k_rope, (q_rope.dtype,))
    for name, tensor in (("q_nope", q_nope), ("ctkv", ctkv)):
        _check.dtype(name, tensor, (torch.int8,) if quantised else (q_rope.dtype,))
    for name, tensor in (("q_nope", q_nope), ("q_rope", q_rope)):
        _check.rank(name, tensor, (3,), "[B, N, D]")
    for name, tensor in (("ctkv", ctkv), ("k_rope", k_rope)):
        _check.rank(name, tensor, (4,), "of four dimensions")
    lengths = torch.tensor(context_lens)
    if bool((lengths < 1).any()):
        _check.refuse("context_lens", "at least 1", list(context_lens))
    if q_nope.shape[1] != q_headnum or kv_headnum < 1 or q_headnum % kv_headnum:
        wanted = f"the {q_nope.shape[1]} heads of q_nope and a divisor of them"
        _check.refuse("q_headnum and kv_headnum", wanted, (q_headnum, kv_headnum))
    pages = Pages.of(_check, block_tables, ctkv.shape[1 if cache_mode == _ROWS else 2], lengths, len(q_nope))
    longest = int(lengths.max())
    latent, rope = (
        pages.gather(name, _blocks(cache, cache_mode, kv_headnum), kv_headnum)[:, :, :longest].float()
        for name, cache in (("ctkv", ctkv), ("k_rope", k_rope))
    )
    allowed = (torch.arange(longest) < lengths[:, None])[:, None, None]
    nope, turned = q_nope.float().unsqueeze(2), q_rope.float().unsqueeze(2)
    if not quantised:
        queries, keys = torch.cat((nope, turned), -1), torch.cat((latent, rope), -1)
        output, largest, total = attend_with_sums(queries, keys, latent, qk_scale, allowed, None)
        return output.squeeze(2), log_sum(largest, total).squeeze(2)
    if qk_descale is None or pv_descale is None:
        _check.refuse("qk_descale and pv_descale", "given with int8_nzcache", None)
    values, rope = (x.repeat_interleave(q_headnum // kv_headnum, 1) for x in (latent, rope))
    # Float32 holds the sums of up to 1024 products of int8 exactly.
    scores = nope @ values.transpose(2, 3) * qk_descale.float().view(-1, 1, 1) + turned @ rope.transpose(2, 3)
    output, largest, total = quantised_probabilities(scores * qk_scale, ~allowed, values, pv_descale)
    return output.squeeze(2), log_sum(largest, total).squeeze(2)


def _blocks(cache: Tensor, cache_mode: str, heads: int) -> Tensor:
    """The cache as `Pages` takes it."""
    if cache_mode == _ROWS:
        return cache.flatten(2)
    if cache.shape[1] % heads:
        _check.refuse("kv_headnum", f"a divisor of {cache.shape[1]}, the strips of a cache", heads)
    return cache.unflatten(1, (heads, cache.shape[1] // heads))


def latent_attention(q_nope: Tensor, q_rope: Tensor, *args: Any, **options: Any) -> Tensor:
    """output. Raises ValueError on arguments that the module's document excludes."""
    return _attention(q_nope, q_rope, *args, **options)[0].to(q_rope.dtype)


def latent_attention_out(*args: Any, output: Tensor, **options: Any) -> Tensor:
    """The same, written to output."""
    return write(_check, output, latent_attention(*args, **options))


def latent_attention_lse(
    q_nope: Tensor, q_rope: Tensor, *args: Any, workspace: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """output and lse, as the module's document says. Raises ValueError on arguments that it excludes."""
    *given, return_lse = args
    output, lse = _attention(q_nope, q_rope, *given, **options)
    wanted = return_lse and options.get("calc_type") == _RING
    return output.to(q_rope.dtype), lse.to(q_rope.dtype) if wanted else None


def latent_attention_lse_out(*args: Any, output: Tensor, lse: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The same, written to output and, with return_lse and calc_type_ring, to lse."""
    made, sums = latent_attention_lse(*args, **options)
    write(_check, output, made)
    if sums is not None:
        write(_check, lse, sums)
    return output, lse


OPERATOR = of_torch_npu("npu_multi_head_latent_attention", latent_attention, namespace="atb")
OUT_OPERATOR = of_torch_npu("npu_multi_head_latent_attention.out", latent_attention_out, namespace="atb")
LSE_OPERATOR = of_torch_npu("npu_multi_head_latent_attention.lse", latent_attention_lse, namespace="atb")
LSE_OUT_OPERATOR = of_torch_npu("npu_multi_head_latent_attention.lse_out", latent_attention_lse_out, namespace="atb")
LSE_WORKSPACE_OPERATOR = of_torch_npu("_npu_multi_head_latent_attention_get_workspace.lse", workspace, namespace="atb")
