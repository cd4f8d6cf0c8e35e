"""ATB's `_npu_flash_attention` and its forms `_unpad`, `_unpad_v2`, `_v2`, `_v3`, `_qlens`, `_prefix_v2`: attention over packed sequences.

    query [T, N, D], key [T, K, D], value [T, K, Dv] float16 or bfloat16, or their heads side by side [T, N*D]
    seq_len [B]: the sequences' lengths, a tensor of the host or a list   out [T, N, Dv], or [T, N*Dv], which is written to
    _npu_flash_attention     mask: what is added to the scores (mask_type 1)       _unpad, _unpad_v2   without a mask
    _npu_flash_attention_v2  mask_type 1, 2, 4, 5, with mask and slopes            _v3                 mask_type 3, a causal triangle
    _qlens, _prefix_v2       keys and values in pages [blocks, block_size, K, D] or [blocks, block_size, K*D] by block_table [B, blocks];
                             seq_len: the queries of each sequence, its last ones; context_lens: its keys; mask_type 3; 3, 4, 5

Masks: `atb_masks`. Float32 inside, rounded once. kernel_type chooses among the kernels' ways to round and is not looked at.

Source: op-plugin's C++ (op_plugin/ops/atb) and tests. Not served: _v2's mask_type 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_graph.operators.attention import atb_masks, layouts
from moe_graph.operators.attention.core import attend
from moe_graph.operators.attention.layouts import Lengths, Packed
from moe_graph.operators.attention.masks import Sequences
from moe_graph.operators.attention.paged import Pages
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import Operator, of_torch_npu

_FLOATS = (torch.float16, torch.bfloat16)


def _packed(check: Checks, name: str, lengths: Lengths, tokens: int) -> Packed:
    ends = torch.tensor(layouts.numbers(lengths)).cumsum(0).tolist()
    return Packed(check, name, ends, tokens)


def write(check: Checks, out: Tensor, attention: Tensor) -> Tensor:
    """`out`, which gets the values of `attention` [T, N, Dv] in its own shape."""
    if out.numel() != attention.numel() or len(out) != len(attention):
        check.refuse("out", f"of shape {list(attention.shape)}", f"shape {tuple(out.shape)}")
    return out.copy_(attention.reshape(out.shape))


def over_tokens(
    check: Checks,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_len: Lengths,
    scale: float,
    heads: int,
    kv_heads: int,
    out: Tensor,
    mask_type: int = atb_masks.NONE,
    mask: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """`out`, as the module's document says of keys and values that lie like the queries. Raises ValueError on what it excludes."""
    kv_heads = kv_heads or heads
    packed = _packed(check, "seq_len", seq_len, len(query))
    laid = []
    for name, tensor, count in (("query", query, heads), ("key", key, kv_heads), ("value", value, kv_heads)):
        check.dtype(name, tensor, _FLOATS if name == "query" else (query.dtype,))
        if len(tensor) != len(query) or tensor.numel() % max(count * len(query), 1):
            check.refuse(name, f"[{len(query)}, {count}, D] or [{len(query)}, {count} * D]", tuple(tensor.shape))
        tokens = tensor.reshape(len(query), count, -1)
        laid.append(layouts.to_bnsd(check, name, tokens, "TND", count, packed).float())
    rows = Sequences(packed.widest, packed.lengths)
    allowed, bias = atb_masks.of_type(check, mask_type, rows, rows, mask, slopes, heads)
    result = attend(laid[0], laid[1], laid[2], scale, allowed, bias).to(query.dtype)
    return write(check, out, layouts.from_bnsd(result, "TND", packed))


def over_pages(
    check: Checks,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_len: Lengths,
    context_lens: Lengths,
    scale: float,
    heads: int,
    kv_heads: int,
    out: Tensor,
    mask_type: int = atb_masks.NONE,
    mask: Tensor | None = None,
    slopes: Tensor | None = None,
    row_mask: Tensor | None = None,
) -> Tensor:
    """`out`, as the module's document says of keys and values in pages. `row_mask` [T, Sk]: what is added to each query's scores."""
    kv_heads = kv_heads or heads
    packed = _packed(check, "seq_len", seq_len, len(query))
    lengths = torch.tensor(layouts.numbers(context_lens))
    if len(lengths) != len(packed.lengths) or bool((lengths < packed.lengths).any()):
        allowed_lengths = "for each sequence the number of its keys, not below that of its queries"
        check.refuse("context_lens", allowed_lengths, lengths.tolist())
    check.dtype("query", query, _FLOATS)
    longest = int(lengths.max())
    queries = layouts.to_bnsd(check, "query", query.reshape(len(query), heads, -1), "TND", heads, packed).float()
    pages = Pages.of(check, block_table, key_cache.shape[1], lengths, len(lengths))
    keys, values = (
        pages.gather(name, cache.reshape(*cache.shape[:2], -1), kv_heads)[:, :, :longest].float()
        for name, cache in (("key_cache", key_cache), ("value_cache", value_cache))
    )
    rows, columns = Sequences(packed.widest, packed.lengths), Sequences(longest, lengths)
    allowed, bias = atb_masks.of_type(check, mask_type, rows, columns, mask, slopes, heads)
    if row_mask is not None:
        if row_mask.dim() != 2 or len(row_mask) < len(query) or row_mask.shape[1] < longest:
            check.refuse("mask", f"of shape [{len(query)}, {longest}]", f"shape {tuple(row_mask.shape)}")
        bias = packed.pad(row_mask[None, : len(query), :longest].float())
    result = attend(queries, keys, values, scale, allowed, bias).to(query.dtype)
    return write(check, out, layouts.from_bnsd(result, "TND", packed))


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    out: Tensor,
) -> None:
    """_npu_flash_attention, into `out`."""
    sizes = (scale_value, num_heads, num_kv_heads)
    over_tokens(_CHECKS[""], query, key, value, seq_len, *sizes, out, atb_masks.NORM, mask)


def flash_attention_unpad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    out: Tensor,
) -> None:
    """_npu_flash_attention_unpad, into `out`."""
    over_tokens(_CHECKS["_unpad"], query, key, value, seq_len, scale_value, num_heads, num_kv_heads, out)


def flash_attention_unpad_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    *,
    kernel_type: int | None = 0,
    out: Tensor,
) -> None:
    """_npu_flash_attention_unpad_v2, into `out`."""
    over_tokens(_CHECKS["_unpad_v2"], query, key, value, seq_len, scale_value, num_heads, num_kv_heads, out)


def flash_attention_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_len: Sequence[int],
    *,
    mask: Tensor | None = None,
    slopes: Tensor | None = None,
    kernel_type: int = 0,
    mask_type: int = atb_masks.ALIBI,
    scale_value: float = 1.0,
    num_heads: int = 0,
    num_kv_heads: int = 0,
    out: Tensor,
) -> Tensor:
    """_npu_flash_attention_v2: `out`. ValueError for a mask_type that it does not take."""
    check = _CHECKS["_v2"]
    served = (atb_masks.NORM, atb_masks.ALIBI, atb_masks.ALIBI_COMPRESS, atb_masks.ALIBI_COMPRESS_SQRT)
    check.value("mask_type", mask_type, served)
    sizes = (scale_value, num_heads, num_kv_heads)
    return over_tokens(check, query, key, value, seq_len, *sizes, out, mask_type, mask, slopes)


def flash_attention_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    *,
    mask_type: int | None = atb_masks.NORM_COMPRESS,
    out: Tensor,
) -> None:
    """_npu_flash_attention_v3, into `out`. ValueError for a mask_type that it does not take."""
    check = _CHECKS["_v3"]
    check.value("mask_type", mask_type, (None, atb_masks.NORM_COMPRESS))
    sizes = (scale_value, num_heads, num_kv_heads)
    over_tokens(check, query, key, value, seq_len, *sizes, out, atb_masks.NORM_COMPRESS, mask)


def flash_attention_qlens(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    context_lens: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    out: Tensor,
) -> None:
    """_npu_flash_attention_qlens, into `out`."""
    caches = (key_cache, value_cache, block_table)
    sizes = (scale_value, num_heads, num_kv_heads)
    over_pages(_CHECKS["_qlens"], query, *caches, seq_len, context_lens, *sizes, out, atb_masks.NORM_COMPRESS, mask)


def flash_attention_prefix_v2(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    mask: Tensor,
    seq_len: Sequence[int],
    context_lens: Sequence[int],
    *,
    slopes: Tensor | None = None,
    kernel_type: int = 1,
    mask_type: int = atb_masks.NORM_COMPRESS,
    num_kv_heads: int = 0,
    num_heads: int = 0,
    scale_value: float = 1.0,
    out: Tensor,
) -> Tensor:
    """_npu_flash_attention_prefix_v2: `out`. ValueError for a mask_type that it does not take."""
    check = _CHECKS["_prefix_v2"]
    check.value("mask_type", mask_type, range(atb_masks.NORM_COMPRESS, atb_masks.ALIBI_COMPRESS_SQRT + 1))
    caches = (key_cache, value_cache, block_table)
    sizes = (scale_value, num_heads, num_kv_heads)
    return over_pages(check, query, *caches, seq_len, context_lens, *sizes, out, mask_type, mask, slopes)


_FORMS: dict[str, Callable[..., Tensor | None]] = {
    "": flash_attention,
    "_unpad": flash_attention_unpad,
    "_unpad_v2": flash_attention_unpad_v2,
    "_v2": flash_attention_v2,
    "_v3": flash_attention_v3,
    "_qlens": flash_attention_qlens,
    "_prefix_v2": flash_attention_prefix_v2,
}
_CHECKS = {form: Checks(f"_npu_flash_attention{form}") for form in _FORMS}


def _operator(form: str) -> Operator:
    overload = ".out" if form in ("_v2", "_prefix_v2") else ""
    return of_torch_npu(f"_npu_flash_attention{form}{overload}", _FORMS[form], namespace="atb")


OPERATOR = _operator("")
UNPAD_OPERATOR = _operator("_unpad")
UNPAD_V2_OPERATOR = _operator("_unpad_v2")
V2_OPERATOR = _operator("_v2")
V3_OPERATOR = _operator("_v3")
QLENS_OPERATOR = _operator("_qlens")
PREFIX_V2_OPERATOR = _operator("_prefix_v2")
