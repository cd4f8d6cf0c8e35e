"""Attention of training and its gradient: what npu_fusion_attention, its v2 and v3 share.

    attention_out = softmax(scale * (query @ key^T + pse), hidden where atten_mask says) @ value       pse_type 0: scale * ... + pse

`Training` holds what an operator was given; `forward` gives the output and for each query the largest score and the sum of
exp(score - largest), which `backward` wants again. Of a query that sees no key the output is 0, the largest score the smallest float32 and
the sum the largest, as the device's kernel sets them: its probabilities are 0. With a sink both count it.

With keep_prob below 1 the probabilities of some pairs of query and key become 0 and the others 1 / keep_prob of what they were: those that
dropout_mask says, or seed and offset (`dropout`), pairs counted sequence by sequence as [N, Sq, Sk].

Sums are [B, N, S, 8] float32, one number eight times; packed [T, N, 8], whose elements lie in the order of the layout with softmax_layout
"TND", and else for each sequence after the other as [N, S, 8]. All is float32, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_graph.operators.attention import dropout, layouts, masks
from moe_graph.operators.attention.core import attend_with_sums, finite_sums, scores_of
from moe_graph.operators.attention.layouts import Layout, Lengths, Packed
from moe_graph.operators.attention.masks import Sequences
from moe_graph.operators.checks import Checks

LAYOUTS = ("BSH", "SBH", "BSND", "BNSD", "TND")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_PREFIX, _PREFIX_PACKED, _OUTER = 5, 6, (7, 8)
_EIGHT = 8
_INFO = torch.finfo(torch.float32)


@dataclass(frozen=True)
class Training:
    """Everything that an operator was given. Names are npu_fusion_attention's."""

    check: Checks
    query: Tensor
    key: Tensor
    value: Tensor
    head_num: int
    input_layout: str
    pse: Tensor | None
    padding_mask: Tensor | None
    atten_mask: Tensor | None
    scale: float
    keep_prob: float
    pre_tokens: int
    next_tokens: int
    inner_precise: int
    prefix: Lengths | None
    query_ends: Lengths | None
    key_ends: Lengths | None
    sparse_mode: int
    softmax_layout: str
    sink: Tensor | None
    dropout_mask: Tensor | None = None
    seed: int = 0
    offset: int = 0
    pse_type: int = 1
    query_rope: Tensor | None = None
    key_rope: Tensor | None = None


@dataclass(frozen=True)
class _Laid:
    """The tensors as [B, N, S, D] float32, what each query sees, and the bias that is added to the scaled scores."""

    layout: Layout
    heads: int
    key_heads: int
    packed_queries: Packed | None
    packed_keys: Packed | None
    query: Tensor
    key: Tensor
    value: Tensor
    queries: Sequences
    allowed: Tensor | None
    bias: Tensor | None

    def output(self, x: Tensor, packed: Packed | None) -> Tensor:
        return layouts.from_bnsd(x, self.layout.given, packed)


def forward(given: Training) -> tuple[Tensor, Tensor, Tensor]:
    """attention_out in query's layout and dtype, softmax_max, softmax_sum. Raises ValueError on arguments that the documents exclude."""
    laid = _laid(given)
    factors = _kept(given, laid)
    output, largest, total = attend_with_sums(
        laid.query,
        laid.key,
        laid.value,
        given.scale,
        laid.allowed,
        laid.bias,
        given.sink,
        probabilities=None if factors is None else factors.mul,
    )
    largest, total = finite_sums(largest, total)
    output = laid.output(output.to(given.query.dtype), laid.packed_queries)
    return output, _to_eight(given, laid, largest), _to_eight(given, laid, total)


def backward(
    given: Training, grad: Tensor, softmax_max: Tensor | None, softmax_sum: Tensor | None, attention_in: Tensor | None
) -> dict[str, Tensor | None]:
    """Gradients by name: query, key, value, pse, sink, query_rope, key_rope, in their shapes and dtypes; None of what was not given.

    softmax_max, softmax_sum and attention_in are the forward's, or those of all keys if these are but a part of them.
    """
    check = given.check
    if softmax_max is None or softmax_sum is None or attention_in is None:
        check.refuse("softmax_max, softmax_sum and attention_in", "given", None)
    laid = _laid(given)
    grads, output = (
        layouts.to_bnsd(check, name, x, laid.layout.given, laid.heads, laid.packed_queries).float()
        for name, x in (("dy", grad), ("attention_in", attention_in))
    )
    valid = laid.queries.valid()
    if valid is not None:
        grads = grads.masked_fill(~valid[:, None, :, None], 0)
    largest, total = (_from_eight(given, laid, x) for x in (softmax_max, softmax_sum))
    scores = scores_of(laid.query, laid.key, given.scale, laid.bias)
    if laid.allowed is not None:
        scores = scores.masked_fill(~laid.allowed, -torch.inf)
    probabilities = (scores - largest).exp() / total
    groups = laid.heads // laid.key_heads
    keys, values = laid.key.repeat_interleave(groups, 1), laid.value.repeat_interleave(groups, 1)

    def of_heads(x: Tensor) -> Tensor:
        return x.unflatten(1, (laid.key_heads, groups)).sum(2)

    through, of_probabilities = (grads * output).sum(-1, keepdim=True), grads @ values.transpose(2, 3)
    factors, used = _kept(given, laid), probabilities
    if factors is not None:
        used, of_probabilities = probabilities * factors, of_probabilities * factors
    of_scores = probabilities * (of_probabilities - through)
    of_query = of_scores @ keys * given.scale
    of_key = of_heads(of_scores.transpose(2, 3) @ laid.query * given.scale)
    found: dict[str, Tensor | None] = dict.fromkeys(("pse", "sink", "query_rope", "key_rope"))
    found["value"] = laid.output(of_heads(used.transpose(2, 3) @ grads), laid.packed_keys)
    sides = (
        ("query", of_query, given.query_rope, laid.packed_queries),
        ("key", of_key, given.key_rope, laid.packed_keys),
    )
    for name, whole, rope, packed in sides:
        if rope is not None:
            width = rope.shape[-1] if laid.layout.given[-1] != "H" else rope.shape[-1] // whole.shape[1]
            whole, of_rope = whole.split([whole.shape[-1] - width, width], -1)
            found[f"{name}_rope"] = laid.output(of_rope, packed)
        found[name] = laid.output(whole, packed)
    if given.pse is not None:
        factor = given.scale if given.pse_type == 1 else 1.0
        found["pse"] = (of_scores * factor).sum_to_size(given.pse.shape).to(given.pse.dtype)
    if given.sink is not None:
        share = (given.sink.float().view(1, -1, 1, 1) - largest).exp() / total
        found["sink"] = -(share * through).sum((0, 2, 3)).to(given.sink.dtype)
    return {name: x if x is None or name in ("pse", "sink") else x.to(given.query.dtype) for name, x in found.items()}


def _laid(given: Training) -> _Laid:
    check = given.check
    _check_arguments(given)
    layout = layouts.parse(check, given.input_layout, LAYOUTS, given.query)
    heads, key_heads = given.head_num, _key_heads(given, layout)
    packed_queries = packed_keys = None
    if layout.packed:
        ends = []
        for name, listed in (("actual_seq_qlen", given.query_ends), ("actual_seq_kvlen", given.key_ends)):
            if listed is None:
                check.refuse(name, "given in layout TND: where each sequence ends", None)
            ends.append(_without_trailing_zeros(layouts.numbers(listed)))
        packed_queries = Packed(check, "actual_seq_qlen", ends[0], given.query.shape[0])
        packed_keys = Packed(check, "actual_seq_kvlen", ends[1], given.key.shape[0])

    def laid(name: str, x: Tensor, count: int, packed: Packed | None) -> Tensor:
        return layouts.to_bnsd(check, name, x, layout.given, count, packed).float()

    query, key = (laid("query", given.query, heads, packed_queries), laid("key", given.key, key_heads, packed_keys))
    value = laid("value", given.value, key_heads, packed_keys)
    if given.query_rope is not None and given.key_rope is not None:
        query = torch.cat([query, laid("query_rope", given.query_rope, heads, packed_queries)], -1)
        key = torch.cat([key, laid("key_rope", given.key_rope, key_heads, packed_keys)], -1)
    if query.shape[0] != key.shape[0] or key.shape[:3] != value.shape[:3] or query.shape[3] != key.shape[3]:
        shapes = [tuple(x.shape) for x in (given.query, given.key, given.value)]
        check.refuse(
            "query, key and value", "of one batch, key and value alike, and heads of one size", f"shapes {shapes}"
        )
    queries, keys = (
        Sequences(x.shape[2], packed.lengths if packed else torch.full((x.shape[0],), x.shape[2]))
        for x, packed in ((query, packed_queries), (key, packed_keys))
    )
    valid = keys.valid()
    if valid is not None:  # the rows of other sequences
        key, value = (x.masked_fill(~valid[:, None, :, None], 0) for x in (key, value))
    allowed = _visible(given, queries, keys)
    bias = None
    if given.pse is not None:
        bias = given.pse.float() * (given.scale if given.pse_type == 1 else 1.0)
        full = (query.shape[0], heads, queries.rows, keys.rows)
        if bias.dim() != 4 or any(size not in (1, most) for size, most in zip(bias.shape, full)):
            check.refuse(
                "pse",
                f"of shape {list(full)} or with 1s (compressed alibi is not served)",
                f"shape {tuple(bias.shape)}",
            )
    return _Laid(layout, heads, key_heads, packed_queries, packed_keys, query, key, value, queries, allowed, bias)


def _check_arguments(given: Training) -> None:
    check = given.check
    check.dtype("query", given.query, _FLOATS)
    for name in ("key", "value", "pse", "query_rope", "key_rope"):
        tensor = getattr(given, name)
        if tensor is not None:
            check.dtype(name, tensor, (given.query.dtype,))
    check.absent("padding_mask", given.padding_mask)
    if not 0 < given.keep_prob <= 1:
        check.refuse("keep_prob", "above 0 and at most 1", given.keep_prob)
    if given.pse_type not in (0, 1):
        check.refuse("pse_type", "0 or 1: alibi that the device makes itself is not modelled", given.pse_type)
    check.value("inner_precise", given.inner_precise, range(3))
    if given.sparse_mode in _OUTER:
        check.refuse("sparse_mode", "0 to 6: sequences cut from outside (7 and 8) are not modelled", given.sparse_mode)
    check.value("sparse_mode", given.sparse_mode, range(7))
    if (given.query_rope is None) != (given.key_rope is None):
        check.refuse("query_rope and key_rope", "given together", None)
    check.value("softmax_layout", given.softmax_layout, ("", "TND") if given.input_layout == "TND" else ("",))
    if given.sink is not None and tuple(given.sink.shape) != (given.head_num,):
        check.refuse("sink", f"of shape [{given.head_num}]", f"shape {tuple(given.sink.shape)}")
    if given.pse is not None and given.input_layout == "TND":
        check.refuse(
            "pse", "None in layout TND: its compressed forms are not served", f"shape {tuple(given.pse.shape)}"
        )


def _key_heads(given: Training, layout: Layout) -> int:
    if given.head_num < 1:
        given.check.refuse("head_num", "at least 1", given.head_num)
    if layout.given[-1] != "H":
        found = given.key.shape[layout.given.index("N")]
    else:
        found = (
            given.key.shape[-1] * given.head_num // given.query.shape[-1] if given.query.shape[-1] else given.head_num
        )
    if found < 1 or given.head_num % found:
        given.check.refuse("key", f"of heads that divide query's {given.head_num}", f"shape {tuple(given.key.shape)}")
    return found


def _without_trailing_zeros(ends: Sequence[int]) -> list[int]:
    """Sequences at the end that take no part are given as 0."""
    count = len(ends)
    while count > 1 and not ends[count - 1] and any(ends):
        count -= 1
    return list(ends[:count])


def _visible(given: Training, queries: Sequences, keys: Sequences) -> Tensor | None:
    """Without a mask a query sees all keys, whatever the sparse mode."""
    check, mask, mode = given.check, given.atten_mask, given.sparse_mode
    if len(queries.lengths) != len(keys.lengths):
        check.refuse("actual_seq_kvlen", f"of {len(queries.lengths)} sequences as actual_seq_qlen", len(keys.lengths))
    if mask is None:
        mode = 0
    elif mask.dim() == 2 and mode in (0, 1, _PREFIX):
        mask = mask[None, None]
    if mode not in (_PREFIX, _PREFIX_PACKED):
        return masks.visible(check, queries, keys, mask, mode, given.pre_tokens, given.next_tokens)
    if given.prefix is None:
        check.refuse("prefix", f"given in sparse_mode {mode}", None)
    if mode == _PREFIX:
        if given.input_layout == "TND":
            check.refuse("sparse_mode", "not 5 in layout TND", mode)
        return masks.visible(check, queries, keys, mask, 1, given.pre_tokens, given.next_tokens)
    lengths = torch.tensor(layouts.numbers(given.prefix))
    if len(lengths) != len(queries.lengths):
        check.refuse("prefix", f"of {len(queries.lengths)} sequences", lengths.tolist())
    if mask is None or tuple(mask.shape[-2:]) != (3072, masks.TRIANGLE):
        check.refuse(
            "atten_mask",
            f"of shape [3072, {masks.TRIANGLE}] in sparse_mode 6",
            None if mask is None else tuple(mask.shape),
        )
    whole = masks.visible(check, queries, keys, None, 0, 0, 0)
    shift = (keys.lengths - queries.lengths).view(-1, 1, 1)
    position = torch.arange(keys.rows)
    seen = (position <= torch.arange(queries.rows)[:, None] + shift) | (position < lengths.view(-1, 1, 1))
    return seen[:, None] if whole is None else seen[:, None] & whole


def _to_eight(given: Training, laid: _Laid, x: Tensor) -> Tensor:
    """[B, N, S, 1] as the sums are given."""
    if laid.packed_queries is None:
        return x.expand(*x.shape[:3], _EIGHT).contiguous()
    if given.softmax_layout == "TND":
        flat = laid.packed_queries.unpad(x).transpose(0, 1)
    else:
        parts = [x[b, :, :length].flatten() for b, length in enumerate(laid.packed_queries.lengths.tolist())]
        missing = given.query.shape[0] * laid.heads - sum(part.numel() for part in parts)
        flat = torch.cat([*parts, x.new_zeros(missing)]).view(given.query.shape[0], laid.heads, 1)
    return flat.expand(*flat.shape[:2], _EIGHT).contiguous()


def _from_eight(given: Training, laid: _Laid, x: Tensor) -> Tensor:
    """[B, N, S, 1] of the sums; rows of no sequence get what makes their probabilities 0."""
    x = x[..., :1].float()
    packed = laid.packed_queries
    if packed is None:
        return x
    if given.softmax_layout == "TND":
        return packed.pad(x.transpose(0, 1))
    padded = x.new_full((len(packed.lengths), laid.heads, packed.widest, 1), _INFO.max)
    lengths, flat = packed.lengths.tolist(), x.flatten()
    for b, part in enumerate(flat[: sum(lengths) * laid.heads].split([length * laid.heads for length in lengths])):
        padded[b, :, : lengths[b], 0] = part.view(laid.heads, lengths[b])
    return padded


def pairs(given: Training) -> int:
    """How many pairs of query and key there are, head by head: the bits of a dropout mask."""
    if given.input_layout != "TND" or given.query_ends is None or given.key_ends is None:
        sizes = [x.shape[given.input_layout.index("S")] for x in (given.query, given.key)]
        return given.query.shape[given.input_layout.index("B")] * given.head_num * math.prod(sizes)
    ends = [[0, *layouts.numbers(listed)] for listed in (given.query_ends, given.key_ends)]
    lengths = [[max(end - start, 0) for start, end in zip(listed, listed[1:])] for listed in ends]
    return given.head_num * sum(q * k for q, k in zip(*lengths))


def _kept(given: Training, laid: _Laid) -> Tensor | None:
    """What dropout multiplies the probabilities with, [B, N, Sq, Sk]: 0 or 1 / keep_prob. None if it keeps all."""
    if given.keep_prob == 1:
        return None
    count = pairs(given)
    if given.dropout_mask is None:
        bits = dropout.kept(count, given.keep_prob, given.seed, given.offset)
    else:
        given.check.dtype("dropout_mask", given.dropout_mask, (torch.uint8,))
        if given.dropout_mask.numel() * 8 < count:
            given.check.refuse("dropout_mask", f"of {count} bits at least", f"shape {tuple(given.dropout_mask.shape)}")
        bits = dropout.unpacked(given.dropout_mask, count)
    shape = (len(laid.queries.lengths), laid.heads, laid.query.shape[2], laid.key.shape[2])
    if laid.packed_queries is None or laid.packed_keys is None:
        return bits.view(shape) / given.keep_prob
    factors = torch.zeros(shape)
    sizes = list(zip(laid.packed_queries.lengths.tolist(), laid.packed_keys.lengths.tolist()))
    for b, ((rows, keys), part) in enumerate(zip(sizes, bits.split([laid.heads * q * k for q, k in sizes]))):
        factors[b, :, :rows, :keys] = part.view(laid.heads, rows, keys) / given.keep_prob
    return factors
