"""`npu_nsa_select_attention(query, key, value, topk_indices, scale_value, head_num, select_block_size, select_block_count, ...)`: attention
over the blocks of keys that native sparse attention chose, and its gradient.

    query [T, N, D]   key [T, K, D]   value [T, K, Dv]   float16 or bfloat16, packed; actual_seq_qlen, actual_seq_kvlen: where sequences end
    topk_indices [T, K, select_block_count] int32: b chooses the keys from b * select_block_size on of the query's sequence; a block that
                 is chosen twice counts twice
    atten_mask   the upper triangle of 2048 x 2048: key <= query, both counted from the start of their sequence; without it no key is hidden
    -> attention_out [T, N, Dv] like query, softmax_max, softmax_sum [T, N, 8] float32, one number eight times

npu_nsa_select_attention_grad takes dy and those results and gives the gradients of query, key and value. Of a query that sees no key the
output is 0, the largest score the smallest float32 and the sum the largest. Float32, rounded once. torchair lowers neither.

Sources: the document of aclnnNsaSelectedAttention in ops-transformer; op-plugin's op_plugin_functions.yaml (sparse mode 2) and test. The
document says that without a mask the mode has no effect; the golden of the gradient's test hides keys all the same, and is not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_graph.operators.attention import layouts, masks
from moe_graph.operators.attention.core import attend_with_sums, finite_sums, scores_of
from moe_graph.operators.attention.layouts import Packed
from moe_graph.operators.attention.masks import Sequences
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check, _check_grad = Checks("npu_nsa_select_attention"), Checks("npu_nsa_select_attention_grad")
_FLOATS = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Laid:
    """[B, N, S, D] float32; which keys a query sees, and the logarithm of how often each is chosen, [B, N, S, Sk]."""

    packed_queries: Packed
    packed_keys: Packed
    query: Tensor
    key: Tensor
    value: Tensor
    allowed: Tensor
    bias: Tensor


def nsa_select_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    topk_indices: Tensor,
    scale_value: float,
    head_num: int,
    select_block_size: int,
    select_block_count: int,
    *,
    atten_mask: Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """attention_out, softmax_max, softmax_sum, as the module's document says. Raises ValueError on arguments that it excludes."""
    blocks, ends = (select_block_size, select_block_count), (actual_seq_qlen, actual_seq_kvlen)
    laid = _laid(_check, query, key, value, topk_indices, head_num, blocks, atten_mask, ends)
    output, largest, total = attend_with_sums(laid.query, laid.key, laid.value, scale_value, laid.allowed, laid.bias)
    output = layouts.from_bnsd(output.to(query.dtype), "TND", laid.packed_queries)
    largest, total = (layouts.eightfold(x, laid.packed_queries) for x in finite_sums(largest, total))
    return output, largest, total


def nsa_select_attention_grad(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_out: Tensor,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    topk_indices: Tensor,
    scale_value: float,
    head_num: int,
    select_block_size: int,
    select_block_count: int,
    *,
    atten_mask: Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    blocks, ends = (select_block_size, select_block_count), (actual_seq_qlen, actual_seq_kvlen)
    laid = _laid(_check_grad, query, key, value, topk_indices, head_num, blocks, atten_mask, ends)
    names = ("grad", "attention_out", "softmax_max", "softmax_sum")
    given = (grad, attention_out, softmax_max[..., :1], softmax_sum[..., :1])
    dy, output, largest, total = (
        layouts.to_bnsd(_check_grad, name, x, "TND", head_num, laid.packed_queries).float()
        for name, x in zip(names, given)
    )
    groups = head_num // laid.key.shape[1]
    keys, values = laid.key.repeat_interleave(groups, 1), laid.value.repeat_interleave(groups, 1)
    scores = scores_of(laid.query, laid.key, scale_value, laid.bias).masked_fill(~laid.allowed, -torch.inf)
    probabilities = (scores - largest).exp() / total
    of_scores = probabilities * (dy @ values.transpose(2, 3) - (dy * output).sum(-1, keepdim=True)) * scale_value

    def of_heads(x: Tensor) -> Tensor:
        return layouts.from_bnsd(x.unflatten(1, (-1, groups)).sum(2).to(query.dtype), "TND", laid.packed_keys)

    of_query = layouts.from_bnsd((of_scores @ keys).to(query.dtype), "TND", laid.packed_queries)
    return of_query, of_heads(of_scores.transpose(2, 3) @ laid.query), of_heads(probabilities.transpose(2, 3) @ dy)


def _laid(
    check: Checks,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    indices: Tensor,
    heads: int,
    blocks: tuple[int, int],
    mask: Tensor | None,
    ends: tuple[Sequence[int] | None, Sequence[int] | None],
) -> _Laid:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check.dtype(name, tensor, _FLOATS if name == "query" else (query.dtype,))
        check.rank(name, tensor, (3,), "[T, N, D]")
    if ends[0] is None or ends[1] is None or len(ends[0]) != len(ends[1]):
        check.refuse("actual_seq_qlen and actual_seq_kvlen", "given, of as many sequences", ends)
    packed_queries = Packed(check, "actual_seq_qlen", list(ends[0]), query.shape[0])
    packed_keys = Packed(check, "actual_seq_kvlen", list(ends[1]), key.shape[0])
    key_heads, (size, count) = key.shape[1], blocks
    if not key_heads or heads % key_heads:
        check.refuse("head_num", f"a multiple of key's {key_heads} heads", heads)
    check.dtype("topk_indices", indices, (torch.int32,))
    if size < 1 or tuple(indices.shape) != (query.shape[0], key_heads, count):
        check.refuse("topk_indices", f"of shape {[query.shape[0], key_heads, count]}", f"shape {tuple(indices.shape)}")
    laid = [
        layouts.to_bnsd(check, name, x, "TND", wanted, packed)
        for name, x, wanted, packed in (
            ("query", query, heads, packed_queries),
            ("key", key, key_heads, packed_keys),
            ("value", value, key_heads, packed_keys),
            ("topk_indices", indices, key_heads, packed_queries),
        )
    ]
    queries, keys = (
        Sequences(packed_queries.widest, packed_queries.lengths),
        Sequences(packed_keys.widest, packed_keys.lengths),
    )
    chosen = laid[3].long()
    last = -(-keys.rows // size)
    wrong = (chosen < 0) | (chosen * size >= keys.lengths.view(-1, 1, 1, 1))
    wrong &= (torch.arange(queries.rows) < queries.lengths[:, None])[:, None, :, None]
    if bool(wrong.any()):
        check.refuse("topk_indices", "blocks of the query's sequence", int(chosen[wrong][0]))
    counts = torch.zeros(*chosen.shape[:3], last, dtype=torch.int32)
    counts.scatter_add_(3, chosen.clamp(0, last - 1), torch.ones_like(chosen, dtype=torch.int32))
    counts = counts.repeat_interleave(size, 3)[..., : keys.rows].repeat_interleave(heads // key_heads, 1)
    allowed, mode = counts > 0, 0 if mask is None else masks.CAUSAL_LEFT
    seen = masks.visible(check, queries, keys, mask, mode, 0, 0)
    allowed = allowed if seen is None else allowed & seen
    wide = [x.float() for x in laid[:3]]
    return _Laid(packed_queries, packed_keys, wide[0], wide[1], wide[2], allowed, counts.float().log())


OPERATOR = of_torch_npu("npu_nsa_select_attention", nsa_select_attention)
GRADIENT_OPERATOR = of_torch_npu("npu_nsa_select_attention_grad", nsa_select_attention_grad)
