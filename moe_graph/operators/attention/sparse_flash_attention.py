"""`npu_sparse_flash_attention(query, key, value, sparse_indices, scale_value, ...)`: latent attention over the keys that an indexer chose.

    query, key, value   as `sparse` says, float16 or bfloat16; key and value with one head, and the same tensor on the device
    query_rope, key_rope   further elements of each head, before the product
    sparse_indices      [B, S, 1, count] or [T, 1, count] int32: b chooses the keys from b * sparse_block_size on, sparse_block_size of
                        them; what comes behind the first -1 is not looked at. A key that is chosen twice counts twice
    sparse_mode         0: the chosen keys of the sequence, 3: of them those not right of the diagonal from the lower right corner
    sinks               [N] float32: a score for each head, without a value
    -> attention_out    query's shape and dtype
       softmax_max, softmax_sum   with return_softmax_lse float32 [B, 1, S, N] or [1, T, N], else of no elements: the largest score, the
                        sum of exp(score - largest). Of a query that sees no key: -inf and 0, and its output is 0

attention_mode is 2, MLA with absorbed weights; without value (CANN 9.2) key serves for it. Float32, rounded once.

Sources: the operator's page in the torch_npu documentation, its test in op-plugin (-1), torch_npu's fake implementation (shapes).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.attention.core import attend, attend_with_sums
from moe_graph.operators.attention.sparse import ANY, Sides, sides, whole_range
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed

_check = Checks("npu_sparse_flash_attention")
_FLOATS = (torch.float16, torch.bfloat16)
LATENT = 2


def sparse_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    sparse_indices: Tensor,
    scale_value: float,
    *,
    block_table: Tensor | None = None,
    actual_seq_lengths_query: Tensor | None = None,
    actual_seq_lengths_kv: Tensor | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    sparse_block_size: int = 1,
    layout_query: str = "BSND",
    layout_kv: str = "BSND",
    sparse_mode: int = 3,
    pre_tokens: int = ANY,
    next_tokens: int = ANY,
    attention_mode: int = 0,
    return_softmax_lse: bool = False,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """attention_out, softmax_max, softmax_sum, as the module's document says. Raises ValueError on arguments that it excludes."""
    whole_range(_check, sparse_mode, pre_tokens, next_tokens)
    _check.value("attention_mode", attention_mode, (LATENT,))
    if query_rope is None or key_rope is None:
        _check.refuse("query_rope and key_rope", "given in attention_mode 2", None)
    value = key if value is None else value
    _check.dtype("query", query, _FLOATS)
    for name, tensor in (("key", key), ("value", value), ("query_rope", query_rope), ("key_rope", key_rope)):
        _check.dtype(name, tensor, (query.dtype,))
    names = ("layout_kv", "actual_seq_lengths_kv")
    found = sides(
        _check, query, key, layout_query, layout_kv, actual_seq_lengths_query, actual_seq_lengths_kv, block_table, names
    )
    queries = torch.cat([found.queries_of("query", query), found.queries_of("query_rope", query_rope)], -1).float()
    keys = torch.cat([found.keys_of("key", key), found.keys_of("key_rope", key_rope)], -1).float()
    values = found.keys_of("value", value).float()
    chosen = chosen_keys(_check, found, sparse_indices, sparse_block_size, sparse_mode)
    return attend_chosen(
        _check, found, queries, keys, values, chosen, scale_value, sinks, query.dtype, return_softmax_lse
    )


def chosen_keys(check: Checks, found: Sides, indices: Tensor, block_size: int, sparse_mode: int) -> Tensor:
    """How often each key is chosen, [B, S, Sk] int32."""
    check.dtype("sparse_indices", indices, (torch.int32,))
    if block_size < 1 or block_size & (block_size - 1):
        check.refuse("sparse_block_size", "a power of 2", block_size)
    if indices.dim() != len(found.layout_query) or indices.shape[-2] != 1 or not indices.shape[-1]:
        check.refuse(
            "sparse_indices",
            f"{found.layout_query} with one head and at least one choice",
            f"shape {tuple(indices.shape)}",
        )
    blocks = found.queries_of("sparse_indices", indices)[:, 0].long()  # [B, S, count]
    if blocks.shape[:2] != (found.batch, found.queries.rows):
        check.refuse("sparse_indices", "of as many rows as query", f"shape {tuple(indices.shape)}")
    valid = (blocks != -1).cummin(-1).values
    last = -(-found.keys.rows // block_size)
    wrong = valid & ((blocks < 0) | (blocks * block_size >= found.keys.lengths[:, None, None]))
    wrong &= (torch.arange(found.queries.rows) < found.queries.lengths[:, None])[..., None]
    if bool(wrong.any()):
        check.refuse("sparse_indices", "blocks of the sequence, and -1 behind them", int(blocks[wrong][0]))
    counts = torch.zeros(*blocks.shape[:2], last + 1, dtype=torch.int32)  # one column more, for what is not chosen
    counts.scatter_add_(2, blocks.masked_fill(~valid, last).clamp(0, last), valid.int())
    counts = counts[..., :last].repeat_interleave(block_size, -1)[..., : found.keys.rows]
    return counts * found.seen(sparse_mode)


def attend_chosen(
    check: Checks,
    found: Sides,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    chosen: Tensor,
    scale: float,
    sinks: Tensor | None,
    dtype: torch.dtype,
    want_sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over the chosen keys, in the layout of the queries, and the sums by key/value head, of no elements if not wanted."""
    if queries.shape[-1] != keys.shape[-1] or keys.shape[1] != 1:
        wanted = f"of one head, and of query's {queries.shape[-1]} elements with their rope"
        check.refuse("key", wanted, f"{keys.shape[1]} heads of {keys.shape[-1]}")
    if sinks is not None and tuple(sinks.shape) != (queries.shape[1],):
        check.refuse("sinks", f"of shape [{queries.shape[1]}]", f"shape {tuple(sinks.shape)}")
    allowed = (chosen > 0).unsqueeze(1)
    bias = chosen.float().log().unsqueeze(1) if bool((chosen > 1).any()) else None
    if not want_sums:
        empty = torch.zeros(0)
        return found.output(attend(queries, keys, values, scale, allowed, bias, sinks).to(dtype)), empty, empty
    output, *sums = attend_with_sums(queries, keys, values, scale, allowed, bias, sinks)
    by_head = [x.transpose(1, 3) for x in sums]  # [B, 1, S, N]
    if found.packed_queries is not None:
        by_head = [found.packed_queries.unpad(x, fill) for x, fill in zip(by_head, (-torch.inf, 0))]
    return found.output(output.to(dtype)), by_head[0].contiguous(), by_head[1].contiguous()


OPERATOR = of_torch_npu(
    "npu_sparse_flash_attention",
    sparse_flash_attention,
    ge=[
        GeKernel(
            "SparseFlashAttention",
            renamed(sparse_flash_attention),
            outputs=("attention_out", "softmax_max", "softmax_sum"),
        )
    ],
)
