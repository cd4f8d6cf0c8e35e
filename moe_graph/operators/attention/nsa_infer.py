"""`npu_nsa_compress_attention_infer` and `npu_nsa_select_attention_infer`: native sparse attention's two attentions of a decoding step.

    query [B, N, D] (layout TND), [B, 1, N, D] (BSND), [B, 1, N*D] (BSH, the second alone) float16 or bfloat16; one query of each sequence
    key [blocks, page_block_size, K*D], value [blocks, page_block_size, K*Dv]   block_table [B, blocks] int32
    npu_nsa_compress_attention_infer   actual_cmp_seq_kvlen [B]: the compressed keys of each sequence
        -> attention_out, query's shape with Dv, and topk_indices [B, K, select_block_count] int32 (BSND [B, 1, K, ...]): block 0, the last
           two, and of the others those of the largest importance (`nsa_importance`); a sequence has
           ceil(((compressed keys - 1) * compress_stride + compress_block_size) / select_block_size) blocks
    npu_nsa_select_attention_infer     topk_indices [B, K, select_block_count] int32: b chooses the keys from b * select_block_size on,
           -1 none; actual_seq_kvlen [B]: the keys of each sequence
        -> attention_out

Float32, rounded once. torchair lowers neither. Sources: the documents of aclnnNsaCompressAttentionInfer and
aclnnNsaSelectedAttentionInfer (ops-transformer), op-plugin's tests. Not served: several queries of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.attention import nsa_importance
from moe_graph.operators.attention.core import attend, attend_with_probabilities
from moe_graph.operators.attention.paged import Pages
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_compress, _select = Checks("npu_nsa_compress_attention_infer"), Checks("npu_nsa_select_attention_infer")
_FLOATS = (torch.float16, torch.bfloat16)


def nsa_compress_attention_infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale_value: float,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    compress_block_size: int,
    compress_stride: int,
    *,
    layout: str = "TND",
    atten_mask: Tensor | None = None,
    block_table: Tensor | None = None,
    topk_mask: Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_cmp_seq_kvlen: Sequence[int] | None = None,
    actual_sel_seq_kvlen: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """attention_out and topk_indices. Raises ValueError on what the module's document excludes, NotImplementedError for several queries."""
    check = _compress
    check.value("layout", layout, ("TND", "BSND"))
    nsa_importance.check_sizes(check, select_block_size, compress_block_size, compress_stride)
    q, lengths = _queries(check, query, layout, head_num, actual_seq_qlen, "actual_cmp_seq_kvlen", actual_cmp_seq_kvlen)
    k, v = _pages(check, key, value, block_table, page_block_size, lengths, head_num, key_value_head_num)
    blocks = -(-((lengths - 1) * compress_stride + compress_block_size) // select_block_size)
    if not 3 <= select_block_count <= int(blocks.min()):
        allowed_counts = f"from 3 to {int(blocks.min())}, the blocks of the shortest sequence"
        check.refuse("select_block_count", allowed_counts, select_block_count)
    allowed = (torch.arange(k.shape[2]) < lengths[:, None])[:, None, None]
    output, _, _, probabilities = attend_with_probabilities(q, k, v, scale_value, allowed)
    sizes = (select_block_size, compress_block_size, compress_stride)
    scores = nsa_importance.importance(probabilities, key_value_head_num, int(blocks.max()), *sizes)
    number, last = torch.arange(scores.shape[3]), blocks.view(-1, 1, 1, 1)
    scores = scores.masked_fill((number == 0) | (number >= last - 2), torch.inf).masked_fill(number >= last, -torch.inf)
    chosen = nsa_importance.largest(scores, select_block_count).squeeze(2)
    return _laid_out(output, query, layout), chosen if layout == "TND" else chosen.unsqueeze(1)


def nsa_select_attention_infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    topk_indices: Tensor,
    scale_value: float,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    *,
    layout: str = "BSND",
    atten_mask: Tensor | None = None,
    block_table: Tensor | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
) -> Tensor:
    """attention_out. Raises ValueError on what the module's document excludes, NotImplementedError for several queries."""
    check = _select
    check.value("layout", layout, ("BSND", "BSH", "TND"))
    q, lengths = _queries(check, query, layout, head_num, actual_seq_qlen, "actual_seq_kvlen", actual_seq_kvlen)
    k, v = _pages(check, key, value, block_table, page_block_size, lengths, head_num, key_value_head_num)
    check.dtype("topk_indices", topk_indices, (torch.int32,))
    wanted = (len(lengths), key_value_head_num, select_block_count)
    if topk_indices.numel() != torch.Size(wanted).numel() or select_block_size < 1:
        check.refuse("topk_indices", f"of shape {list(wanted)}", f"shape {tuple(topk_indices.shape)}")
    indices = topk_indices.reshape(wanted).long()
    blocks = -(-lengths // select_block_size)
    if bool(((indices < -1) | (indices >= blocks.view(-1, 1, 1))).any()):
        check.refuse("topk_indices", "blocks of the query's sequence, or -1", indices.flatten().tolist()[:16])
    counts = torch.zeros(*wanted[:2], int(blocks.max()) + 1)
    counts.scatter_add_(
        2, indices + 1, torch.ones_like(indices, dtype=torch.float32)
    )  # -1 is counted in a place of its own
    counts = counts[..., 1:].repeat_interleave(select_block_size, 2)[..., : k.shape[2]]
    counts = torch.nn.functional.pad(counts, (0, k.shape[2] - counts.shape[2]))
    counts = counts.repeat_interleave(head_num // key_value_head_num, 1).unsqueeze(2)
    allowed = (counts > 0) & (torch.arange(k.shape[2]) < lengths[:, None])[:, None, None]
    return _laid_out(attend(q, k, v, scale_value, allowed, counts.log().masked_fill(~allowed, 0)), query, layout)


def _queries(
    check: Checks,
    query: Tensor,
    layout: str,
    heads: int,
    rows: Sequence[int] | None,
    name: str,
    lengths: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """The queries [B, N, 1, D] float32 and the keys' lengths [B]."""
    check.dtype("query", query, _FLOATS)
    check.rank("query", query, (len(layout),), layout)
    if lengths is None or len(lengths) != query.shape[0] or min(lengths) < 1:
        check.refuse(name, f"{query.shape[0]} numbers from 1 on, one for each sequence", lengths)
    if (layout != "TND" and query.shape[1] != 1) or (rows is not None and list(rows) != [1] * len(lengths)):
        raise NotImplementedError(
            check.message("query", "one for each sequence, several are not served", rows or query.shape[1])
        )
    if query[0].numel() % heads:
        check.refuse("query", f"of {heads} heads", f"shape {tuple(query.shape)}")
    return query.float().reshape(len(lengths), heads, 1, -1), torch.tensor(list(lengths))


def _pages(
    check: Checks,
    key: Tensor,
    value: Tensor,
    block_table: Tensor | None,
    size: int,
    lengths: Tensor,
    heads: int,
    key_heads: int,
) -> tuple[Tensor, Tensor]:
    """Keys and values, [B, K, S, D] float32."""
    if block_table is None:
        check.refuse("block_table", "given", None)
    if key_heads < 1 or heads % key_heads:
        check.refuse("head_num", f"a multiple of key_value_head_num, {key_heads}", heads)
    pages = Pages.of(check, block_table, size, lengths, len(lengths))
    key, value = (x.flatten(2) if x.dim() == 4 else x for x in (key, value))
    return pages.gather("key", key, key_heads).float(), pages.gather("value", value, key_heads).float()


def _laid_out(output: Tensor, query: Tensor, layout: str) -> Tensor:
    """[B, N, 1, Dv] in the query's layout and dtype."""
    shaped = {"TND": output.squeeze(2), "BSND": output.transpose(1, 2), "BSH": output.transpose(1, 2).flatten(2)}
    return shaped[layout].to(query.dtype).contiguous()


COMPRESS_OPERATOR = of_torch_npu("npu_nsa_compress_attention_infer", nsa_compress_attention_infer)
SELECT_OPERATOR = of_torch_npu("npu_nsa_select_attention_infer", nsa_select_attention_infer)
