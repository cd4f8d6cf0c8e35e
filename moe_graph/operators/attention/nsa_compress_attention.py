"""`npu_nsa_compress_attention(query, key, value, scale_value, head_num, ...)`: attention over compressed keys, and the blocks it selects.

    query [T, N, D]   key [T, K, D], value [T, K, Dv] compressed; float16 or bfloat16, packed
    actual_seq_qlen, actual_cmp_seq_kvlen: where the sequences of queries and compressed keys end; actual_sel_seq_kvlen: where their
    blocks of select_block_size keys end, counted in blocks
    atten_mask [Sq, Sk] not 0 where a key is hidden   topk_mask [Sq, blocks] not 0 where a block is selected before all others
    -> attention_out [T, N, Dv] like query, topk_indices [T, K, select_block_count] int32 (see `nsa_importance`), softmax_max, softmax_sum
       [T, N, 8] float32, one number eight times

Of a query that sees no key the output is 0, the largest score the smallest float32 and the sum the largest. Float32, rounded once. torchair
does not lower it. Sources: the document of aclnnNsaCompressAttention (ops-transformer), op-plugin's op_plugin_functions.yaml and test.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.attention import layouts, nsa_importance
from moe_graph.operators.attention.core import attend_with_probabilities, finite_sums
from moe_graph.operators.attention.layouts import Packed
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_nsa_compress_attention")
_FLOATS = (torch.float16, torch.bfloat16)


def nsa_compress_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale_value: float,
    head_num: int,
    compress_block_size: int,
    compress_stride: int,
    select_block_size: int,
    select_block_count: int,
    *,
    topk_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_cmp_seq_kvlen: Sequence[int] | None = None,
    actual_sel_seq_kvlen: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four results, as the module's document says. Raises ValueError on arguments that it excludes."""
    nsa_importance.check_sizes(_check, select_block_size, compress_block_size, compress_stride)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check.dtype(name, tensor, _FLOATS if name == "query" else (query.dtype,))
        _check.rank(name, tensor, (3,), "[T, N, D]")
    if not actual_seq_qlen or not actual_cmp_seq_kvlen or not actual_sel_seq_kvlen:
        _check.refuse("actual_seq_qlen, actual_cmp_seq_kvlen and actual_sel_seq_kvlen", "given", None)
    key_heads = key.shape[1]
    if not key_heads or head_num % key_heads:
        _check.refuse("head_num", f"a multiple of key's {key_heads} heads", head_num)
    queries = Packed(_check, "actual_seq_qlen", list(actual_seq_qlen), len(query))
    keys = Packed(_check, "actual_cmp_seq_kvlen", list(actual_cmp_seq_kvlen), len(key))
    ends = torch.tensor(list(actual_sel_seq_kvlen))
    blocks = ends.diff(prepend=ends.new_zeros(1))
    if len(blocks) != len(queries.lengths) or len(keys.lengths) != len(queries.lengths):
        _check.refuse("actual_cmp_seq_kvlen and actual_sel_seq_kvlen", "of as many sequences as actual_seq_qlen", None)
    if not 0 < select_block_count <= int(blocks.min()):
        _check.refuse("select_block_count", f"from 1 to {int(blocks.min())}, a sequence's blocks", select_block_count)
    q = layouts.to_bnsd(_check, "query", query, "TND", head_num, queries).float()
    k, v = (
        layouts.to_bnsd(_check, name, x, "TND", key_heads, keys).float() for name, x in (("key", key), ("value", value))
    )
    allowed = (torch.arange(keys.widest) < keys.lengths[:, None])[:, None, None]
    if atten_mask is not None:
        allowed = allowed & (_cut("atten_mask", atten_mask, queries.widest, keys.widest) == 0)
    output, maximum, total, probabilities = attend_with_probabilities(q, k, v, scale_value, allowed)
    sizes = (select_block_size, compress_block_size, compress_stride)
    scores = nsa_importance.importance(probabilities, key_heads, int(blocks.max()), *sizes)
    if topk_mask is not None:
        scores = scores.masked_fill(_cut("topk_mask", topk_mask, queries.widest, scores.shape[3]) != 0, torch.inf)
    scores = scores.masked_fill((torch.arange(scores.shape[3]) >= blocks[:, None])[:, None, None], -torch.inf)
    chosen = nsa_importance.largest(scores, select_block_count)
    maximum, total = (layouts.eightfold(x, queries) for x in finite_sums(maximum, total))
    attention = layouts.from_bnsd(output.to(query.dtype), "TND", queries)
    return attention, layouts.from_bnsd(chosen, "TND", queries), maximum, total


def _cut(name: str, mask: Tensor, rows: int, columns: int) -> Tensor:
    if mask.dim() != 2 or mask.shape[0] < rows or mask.shape[1] < columns:
        _check.refuse(name, f"of shape [{rows}, {columns}]", f"shape {tuple(mask.shape)}")
    return mask[:rows, :columns]


OPERATOR = of_torch_npu("npu_nsa_compress_attention", nsa_compress_attention)
