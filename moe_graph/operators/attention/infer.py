"""Attention of inference over whole, packed or paged keys and values: what the operators for it share.

`Inference` holds what an operator was given, under one set of names; `infer` computes it. Numbers: float32, rounded once to the output's
dtype. A row of queries behind the end of its sequence, or that sees no key, is 0, and its log-sum-exp +inf.

Not checked are sizes that the device alone limits: alignment of D, of block_size, the number of heads or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_graph.operators.attention import layouts, masks
from moe_graph.operators.attention.core import attend, attend_with_sums, log_sum
from moe_graph.operators.attention.layouts import Layout, Lengths, Packed
from moe_graph.operators.attention.masks import Sequences
from moe_graph.operators.attention.paged import Pages
from moe_graph.operators.attention.quantized import Int8Products, Quantization, factor_of, quantize_output, unpack_int4
from moe_graph.operators.checks import Checks

INT_MAX = 2147483647
_FLOATS = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Inference:
    """Everything that an operator was given. Names are npu_fused_infer_attention_score's."""

    check: Checks
    layout: Layout
    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    key_value_heads: int
    scale: float
    query_lengths: Lengths | None = None
    key_lengths: Lengths | None = None
    lengths_names: tuple[str, str] = ("actual_seq_lengths", "actual_seq_lengths_kv")
    mask: Tensor | None = None
    bias: Tensor | None = None
    sparse_mode: int = 0
    pre_tokens: int = INT_MAX
    next_tokens: int = INT_MAX
    block_table: Tensor | None = None
    block_size: int = 0
    query_padding: Tensor | None = None
    key_padding: Tensor | None = None
    prefix: tuple[Tensor, Tensor] | None = None
    prefix_length: Lengths | None = None
    query_rope: Tensor | None = None
    key_rope: Tensor | None = None
    sink: Tensor | None = None
    query_scale: Tensor | None = None
    key_quantization: Quantization | None = None
    value_quantization: Quantization | None = None
    int8: Int8Products | None = None
    output_scale: Tensor | None = None
    output_offset: Tensor | None = None
    output_scale_name: str = "quant_scale2"
    output_dtype: torch.dtype | None = None
    want_lse: bool = False
    prompt: bool = False
    """Of the operator for prompts, which looks at lengths and sparse modes of single queries, too."""

    @property
    def is_step(self) -> bool:
        """One query of each sequence, without rope: the device looks at the caller's mask alone, not at the sparse mode."""
        single = not self.layout.packed and self.query.shape[self.layout.given.index("S")] == 1
        return single and self.query_rope is None and not self.prompt


def infer(given: Inference) -> tuple[Tensor, Tensor]:
    """attention_out in the output's layout, and softmax_lse: [B, N, S, 1], packed [T, N, 1]; without want_lse of no elements."""
    check, layout = given.check, given.layout
    packed_queries = _packed(given, 0, given.query.shape[layout.given.index("T")]) if layout.packed else None
    query = layouts.to_bnsd(check, "query", given.query, layout.given, given.heads, packed_queries).float()
    if given.query_scale is not None:
        query = query * _query_scale(given, query, packed_queries)
    if given.query_rope is not None:
        rope = layouts.to_bnsd(check, "query_rope", given.query_rope, layout.given, given.heads, packed_queries)
        query = torch.cat([query, rope.float()], -1)
    batch = query.shape[0]
    packed_keys = None
    if layout.packed and given.block_table is None:
        packed_keys = _packed(given, 1, given.key.shape[layout.given.index("T")])
        if len(packed_keys.lengths) != batch:
            check.refuse(given.lengths_names[1], f"of {batch} sequences as the queries", len(packed_keys.lengths))
    key, value, keys = _keys_and_values(given, batch, packed_keys)
    if query.shape[-1] != key.shape[-1]:
        check.refuse("key", f"of {query.shape[-1]} elements a head (with its rope), as the query", key.shape[-1])
    queries = _queries(given, query, packed_queries)
    allowed = _visible(given, queries, keys)
    bias = None if given.bias is None else _bias(given, batch, queries.rows, keys.rows)
    output, lse = _computed(given, query, key, value, allowed, bias)
    if given.output_scale is not None:
        output = quantize_output(check, given.output_scale_name, output, given.output_scale, given.output_offset)
    else:
        output = output.to(given.output_dtype or given.query.dtype)
    output = layouts.from_bnsd(output, layout.output, packed_queries)
    if lse is None:
        return output, torch.zeros(0)
    return output, layouts.from_bnsd(lse, "TND" if layout.packed else "BNSD", packed_queries, torch.inf)


def _computed(
    given: Inference, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if given.int8 is not None:
        factors = factor_of(given.int8.probabilities)
        output, *sums = attend_with_sums(
            query,
            key,
            value,
            given.scale * float(factor_of(given.int8.scores)),
            allowed,
            bias,
            probabilities=lambda p: (p * factors).round().clamp(-128, 127),
        )
        return output * factor_of(given.int8.output), log_sum(*sums) if given.want_lse else None
    if given.want_lse:
        output, *sums = attend_with_sums(query, key, value, given.scale, allowed, bias, given.sink)
        return output, log_sum(*sums)
    return attend(query, key, value, given.scale, allowed, bias, given.sink), None


def _packed(given: Inference, which: int, tokens: int) -> Packed:
    name, ends = given.lengths_names[which], (given.query_lengths, given.key_lengths)[which]
    if ends is None:
        given.check.refuse(name, f"given in layout {given.layout.given}: where each sequence ends", None)
    return Packed(given.check, name, layouts.numbers(ends), tokens)


def _lengths(given: Inference, which: int, batch: int, most: int) -> Tensor:
    """Lengths of sequences with a batch's axis, [B]: of one number, it is everyone's; more than B, the first B count."""
    name, lengths = given.lengths_names[which], (given.query_lengths, given.key_lengths)[which]
    if lengths is None:
        return torch.full((batch,), most)
    found = layouts.numbers(lengths)
    found = found * batch if len(found) == 1 else found[:batch]
    if len(found) != batch or any(not 0 <= length <= most for length in found):
        given.check.refuse(name, f"1 or {batch} lengths from 0 to {most}", layouts.numbers(lengths))
    return torch.tensor(found, dtype=torch.int64)


def _queries(given: Inference, query: Tensor, packed: Packed | None) -> Sequences:
    batch, _, rows, _ = query.shape
    if packed is not None:
        return Sequences(rows, packed.lengths)
    if rows == 1 and not given.prompt:
        return Sequences(1, torch.ones(batch, dtype=torch.int64))  # the lengths of single queries are not looked at
    lengths = _lengths(given, 0, batch, rows)
    return Sequences(
        rows, lengths, _starts(given, "query_padding_size", given.query_padding, given.query_lengths, lengths, rows)
    )


def _starts(
    given: Inference, name: str, padding: Tensor | None, lengths: Lengths | None, found: Tensor, rows: int
) -> Tensor | None:
    """Where left-padded sequences start: `padding` rows from the end."""
    if padding is None or lengths is None:
        return None
    starts = rows - padding.flatten()[:1].clamp_min(0) - found
    if given.is_step:  # a sequence that does not fit is as one of no keys
        found.masked_fill_(starts < 0, 0)
    if bool(((starts < 0) & (found > 0)).any()):
        given.check.refuse(name, f"at most {rows} less the length of each sequence, {found.tolist()}", padding.tolist())
    return starts


def _keys_and_values(given: Inference, batch: int, packed: Packed | None) -> tuple[Tensor, Tensor, Sequences]:
    """Keys (with rope) and values, [B, K, S, D] float32, cut to the longest sequence; those of no sequence are 0."""
    check, heads = given.check, given.key_value_heads
    if given.block_table is not None:
        if given.key_lengths is None:
            check.refuse(given.lengths_names[1], "given with block_table", None)
        lengths = _lengths(given, 1, batch, given.block_table.shape[-1] * given.block_size)
        pages = Pages.of(check, given.block_table, given.block_size, lengths, batch)
    else:
        pages, lengths = None, None

    def whole(name: str, x: Tensor) -> Tensor:
        x = unpack_int4(x) if x.dtype == torch.int32 else x
        return (
            pages.gather(name, x, heads)
            if pages
            else layouts.to_bnsd(check, name, x, given.layout.given, heads, packed)
        )

    key = whole("key", given.key)
    is_shared = given.value is given.key and given.key_quantization is None and given.value_quantization is None
    value = key if is_shared else whole("value", given.value)
    if packed is not None:
        lengths = packed.lengths
    elif lengths is None:
        lengths = _lengths(given, 1, batch, key.shape[2])
    if key.shape[:3] != value.shape[:3] or key.shape[0] != batch:
        wanted = f"of {batch} sequences, as query, and alike but for the size of a head"
        check.refuse("key and value", wanted, f"shapes {tuple(given.key.shape)} and {tuple(given.value.shape)}")
    starts = _starts(given, "kv_padding_size", given.key_padding, given.key_lengths, lengths, key.shape[2])
    width = key.shape[3]
    rope = None if given.key_rope is None else whole("key_rope", given.key_rope)
    if given.key_quantization is not None:
        key = given.key_quantization.dequantize(check, key, pages)
    if rope is not None:
        key = torch.cat([key, rope.to(key.dtype)], -1)
    key = key.to(torch.float32, copy=given.key_quantization is None and rope is None)  # it is written to below
    if given.value_quantization is not None:
        value = given.value_quantization.dequantize(check, value, pages)
    value = key[..., :width] if is_shared else value.to(torch.float32, copy=given.value_quantization is None)
    if starts is None and len(lengths):  # rows that no sequence has are not computed with
        longest = int(lengths.max())
        key, value = key[:, :, :longest], value[:, :, :longest]
    keys = Sequences(key.shape[2], lengths, starts)
    keys.clear(key)  # what lies there may be anything, NaN too
    if not is_shared:
        keys.clear(value)
    return _with_prefix(given, key, value, keys)


def _with_prefix(given: Inference, key: Tensor, value: Tensor, keys: Sequences) -> tuple[Tensor, Tensor, Sequences]:
    """The shared prefix's keys and values before each sequence's own."""
    if given.prefix is None:
        return key, value, keys
    check, batch = given.check, key.shape[0]
    if (
        given.block_table is not None
        or given.layout.packed
        or given.key_padding is not None
        or given.key_rope is not None
    ):
        check.refuse("key_shared_prefix", "None with a block_table, packed layouts, padding sizes and rope", "a tensor")
    names = ("key_shared_prefix", "value_shared_prefix")
    found = []
    for name, x, quantization in zip(names, given.prefix, (given.key_quantization, given.value_quantization)):
        x = unpack_int4(x) if x.dtype == torch.int32 else x
        x = layouts.to_bnsd(check, name, x, given.layout.given, given.key_value_heads, None)
        if x.shape[0] != 1:
            check.refuse(name, "of a batch of 1", f"shape {tuple(x.shape)}")
        if quantization is not None and quantization.mode != 0:
            check.refuse(name, "None with scales per token, which have no rows for it", "a tensor")
        wide = x.float() if quantization is None else quantization.dequantize(check, x, None)
        found.append(wide.expand(batch, -1, -1, -1))
    length = found[0].shape[2] if given.prefix_length is None else layouts.numbers(given.prefix_length)[0]
    if not 0 <= length <= found[0].shape[2] or found[1].shape[2] != found[0].shape[2]:
        check.refuse("actual_shared_prefix_len", f"from 0 to {found[0].shape[2]}, the rows of both prefixes", length)
    key = torch.cat([found[0][:, :, :length], key], 2)
    return key, torch.cat([found[1][:, :, :length], value], 2), Sequences(key.shape[2], keys.lengths + length)


def _visible(given: Inference, queries: Sequences, keys: Sequences) -> Tensor | None:
    mode, mask, pre, following = given.sparse_mode, given.mask, given.pre_tokens, given.next_tokens
    if given.is_step:
        mask = None if mode in (masks.CAUSAL_LEFT, masks.CAUSAL_RIGHT, masks.BAND) else mask
        mode, pre, following = 0, INT_MAX, INT_MAX
    if given.layout.packed and mask is not None and mode in (0, 1):
        given.check.refuse(
            "atten_mask", f"None in layout {given.layout.given} with sparse_mode 0 and 1", f"shape {tuple(mask.shape)}"
        )
    return masks.visible(given.check, queries, keys, mask, mode, pre, following)


def _bias(given: Inference, batch: int, rows: int, keys: int) -> Tensor:
    """pse_shift, [B or 1, N, Sq, Sk], float32."""
    bias = given.bias
    assert bias is not None
    fits = bias.dim() == 4 and bias.shape[0] in (1, batch) and bias.shape[1] == given.heads
    if not fits or bias.shape[2] < rows or bias.shape[3] < keys:
        wanted = f"of shape [{batch} or 1, {given.heads}, {rows}, {keys}], or larger in the last two"
        given.check.refuse("pse_shift", wanted, f"shape {tuple(bias.shape)}")
    return bias[:, :, :rows, :keys].float()


def _query_scale(given: Inference, query: Tensor, packed: Packed | None) -> Tensor:
    """dequant_scale_query, one number for each token and head, as [B, N, S, 1]."""
    scale, layout = given.query_scale, given.layout.given
    assert scale is not None
    if layout == "BSH":
        layout, wanted = "BSND", (*given.query.shape[:2], given.heads)
    else:
        wanted = tuple(given.query.shape[:-1])
    if scale.numel() != torch.Size(wanted).numel():
        given.check.refuse("dequant_scale_query", f"of shape {list(wanted)}", f"shape {tuple(scale.shape)}")
    return layouts.to_bnsd(
        given.check, "dequant_scale_query", scale.reshape(*wanted, 1).float(), layout, given.heads, packed
    )
