"""ATB's `_npu_paged_attention` and its forms `_v2`, `_mla`, `_quant`: one query of each sequence over paged caches; `_splitfuse`: several.

    query [B, N, D] float16 or bfloat16   key_cache [blocks, block_size, K, D], value_cache [blocks, block_size, K, Dv]
    block_table [B, blocks] int32   context_lens [B]: the keys of each sequence, a tensor of the host or a list   out [B, N, Dv], written to
    _npu_paged_attention_mla         without value_cache: the first mla_vheadsize elements of the keys are the values
    _npu_paged_attention_v2          mask_type 2: mask [B, N, 1, Sk] or [B, 1, Sk], added to the scores
    _npu_paged_attention_splitfuse   query [T, N, D], seq_len [B]: each sequence's queries; mask [T, Sk], added to the scores
    _npu_paged_attention_quant       int8 query and caches, k_descale, v_descale [N] float32; quant_type 3: the probabilities become int8
                                     with a scale of their own, the row's largest / 127; outdata_type 1 float16, 27 bfloat16

..._get_workspace gives the memory that the kernel works in: the reference needs none, so [0] of uint8; `workspace` is not looked at.

Float32 inside, rounded once. The kernel makes the probabilities of _quant int8 block by block, here it is row by row, as the golden has it.
Source: op-plugin's C++ (op_plugin/ops/atb) and tests. Not served: other mask_type and quant_type, _splitfuse_v2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.attention import atb_masks, layouts
from moe_graph.operators.attention.atb_flash_attention import over_pages, write
from moe_graph.operators.attention.layouts import Lengths
from moe_graph.operators.attention.paged import Pages
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.quantization.int8 import INT8_MAX

_check, _check_v2, _check_mla, _check_splitfuse, _check_quant = (
    Checks(f"_npu_paged_attention{form}") for form in ("", "_v2", "_mla", "_splitfuse", "_quant")
)
_QUANT_ONLINE = 3
_OF_NUMBER = {1: torch.float16, 27: torch.bfloat16}


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
    *,
    workspace: Tensor | None = None,
) -> None:
    """_npu_paged_attention, into `out`. Raises ValueError on arguments that the module's document excludes."""
    _single(_check, query, key_cache, value_cache, block_table, context_lens, scale_value, num_heads, num_kv_heads, out)


def paged_attention_v2(
    query: Tensor,
    key_cache: Tensor,
    block_table: Tensor,
    context_lens: Sequence[int],
    *,
    value_cache: Tensor | None = None,
    mask: Tensor | None = None,
    num_kv_heads: int = 0,
    num_heads: int = 0,
    scale_value: float = 1.0,
    mask_type: int = atb_masks.NONE,
    workspace: Tensor | None = None,
    out: Tensor,
) -> Tensor:
    """_npu_paged_attention_v2: `out`. Raises ValueError on arguments that the module's document excludes."""
    _check_v2.value("mask_type", mask_type, (atb_masks.NONE, atb_masks.ALIBI))
    if value_cache is None:
        _check_v2.refuse("value_cache", "given", None)
    caches = (key_cache, value_cache, block_table, context_lens)
    return _single(_check_v2, query, *caches, scale_value, num_heads, num_kv_heads, out, mask_type, mask)


def paged_attention_mla(
    query: Tensor,
    key_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    mla_vheadsize: int,
    out: Tensor,
) -> None:
    """_npu_paged_attention_mla, into `out`. Raises ValueError on arguments that the module's document excludes."""
    _check_mla.rank("key_cache", key_cache, (4,), "[blocks, block_size, K, D]")
    _check_mla.value("mla_vheadsize", mla_vheadsize, range(1, key_cache.shape[-1] + 1))
    caches = (key_cache, key_cache[..., :mla_vheadsize], block_table, context_lens)
    _single(_check_mla, query, *caches, scale_value, num_heads, num_kv_heads, out)


def paged_attention_splitfuse(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    out: Tensor,
) -> None:
    """_npu_paged_attention_splitfuse, into `out`. Raises ValueError on arguments that the module's document excludes."""
    caches = (key_cache, value_cache, block_table)
    sizes = (scale_value, num_heads, num_kv_heads)
    over_pages(_check_splitfuse, query, *caches, seq_len, context_lens, *sizes, out, row_mask=mask)


def paged_attention_quant(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    quant_type: int,
    outdata_type: int,
    k_descale: Tensor,
    v_descale: Tensor,
    out: Tensor,
) -> None:
    """_npu_paged_attention_quant, into `out`. Raises ValueError on what the module's document excludes."""
    check = _check_quant
    check.value("quant_type", quant_type, (_QUANT_ONLINE,))
    check.value("outdata_type", outdata_type, tuple(_OF_NUMBER))
    for name, tensor in (("query", query), ("key_cache", key_cache), ("value_cache", value_cache)):
        check.dtype(name, tensor, (torch.int8,))
    check.dtype("out", out, (_OF_NUMBER[outdata_type],))
    lengths = torch.tensor(layouts.numbers(context_lens))
    if bool((lengths < 1).any()):
        check.refuse("context_lens", "at least 1", lengths.tolist())
    pages = Pages.of(check, block_table, key_cache.shape[1], lengths, len(query))
    keys, values = (
        pages.gather(name, cache.flatten(2), num_kv_heads).repeat_interleave(num_heads // num_kv_heads, 1).float()
        for name, cache in (("key_cache", key_cache), ("value_cache", value_cache))
    )
    # int8 products: float32 holds their sums exactly up to 1024 terms, and no more is asked of scores
    scores = query.float().view(len(query), num_heads, 1, -1) @ keys.transpose(2, 3)
    scores = scores * k_descale.float().view(-1, 1, 1) * scale_value
    hidden = (torch.arange(keys.shape[2]) >= lengths[:, None])[:, None, None]
    result, _, _ = quantised_probabilities(scores, hidden, values, v_descale)
    write(check, out, result.squeeze(2).to(out.dtype))


def quantised_probabilities(
    scores: Tensor, hidden: Tensor, values: Tensor, descale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention by scores [B, N, Sq, Sk] whose exponentials become int8, row by row; and the largest scores and the exponentials' sums.

    values [B, N, Sk, Dv]: those of an int8 cache   descale [N]: what the product is multiplied with
    """
    largest = scores.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True)
    exponentials = (scores - largest).exp().masked_fill(hidden, 0)
    total = exponentials.sum(-1, keepdim=True)
    step = exponentials.amax(-1, keepdim=True) / INT8_MAX
    summed = (exponentials / step).round() @ values * step * descale.float().view(-1, 1, 1)
    return summed / total, largest, total


def _single(
    check: Checks,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Lengths,
    scale: float,
    heads: int,
    kv_heads: int,
    out: Tensor,
    *kinds: Any,
) -> Tensor:
    """One query for each sequence."""
    lengths = ([1] * len(query), context_lens)
    return over_pages(check, query, key_cache, value_cache, block_table, *lengths, scale, heads, kv_heads, out, *kinds)


def workspace(*args: Any, **options: Any) -> Tensor:
    """No memory: uint8 [0]."""
    return torch.empty(0, dtype=torch.uint8)


OPERATOR = of_torch_npu("_npu_paged_attention", paged_attention, namespace="atb")
V2_OPERATOR = of_torch_npu("_npu_paged_attention_v2.out", paged_attention_v2, namespace="atb")
MLA_OPERATOR = of_torch_npu("_npu_paged_attention_mla", paged_attention_mla, namespace="atb")
SPLITFUSE_OPERATOR = of_torch_npu("_npu_paged_attention_splitfuse", paged_attention_splitfuse, namespace="atb")
QUANT_OPERATOR = of_torch_npu("_npu_paged_attention_quant", paged_attention_quant, namespace="atb")
WORKSPACE_OPERATOR = of_torch_npu("_npu_paged_attention_get_workspace", workspace, namespace="atb")
V2_WORKSPACE_OPERATOR = of_torch_npu("_npu_paged_attention_v2_get_workspace", workspace, namespace="atb")
