"""`npu_lightning_indexer(query, key, weights, ...)`: for each query the sparse_count keys that matter most, best first.

    score of key j = sum over the heads n of weights[n] * relu(query[n] @ key[j])

    query, key        as `sparse` says, float16 or bfloat16, key with one head
    weights           [B, S, N] or [T, N], like query or float32
    sparse_count      how many keys at most; sparse_mode 0: all keys of the sequence, 3: causal from the lower right corner
    -> sparse_indices [B, S, 1, sparse_count] or [T, 1, sparse_count] int32, positions in the sequence; -1 behind the last one
       sparse_values  with return_value their scores in query's dtype (-inf behind the last one), else of no elements

Scores are float32; of equal ones the lower position comes first. pre_tokens and next_tokens have no value but the default.

Sources: the operator's page in the torch_npu documentation; -1 where nothing is left: the test of npu_quant_lightning_indexer in
op-plugin; the shapes: torch_npu's fake implementation. Not checked: sizes that the device alone limits (D, N, sparse_count, block_size).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.attention.sparse import ANY, Sides, sides, whole_range
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed

_check = Checks("npu_lightning_indexer")
_FLOATS = (torch.float16, torch.bfloat16)
_CHUNK = 1 << 24  # scores of all heads at once, at most


def lightning_indexer(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    *,
    actual_seq_lengths_query: Tensor | None = None,
    actual_seq_lengths_key: Tensor | None = None,
    block_table: Tensor | None = None,
    layout_query: str = "BSND",
    layout_key: str = "BSND",
    sparse_count: int = 2048,
    sparse_mode: int = 3,
    pre_tokens: int = ANY,
    next_tokens: int = ANY,
    return_value: bool = False,
) -> tuple[Tensor, Tensor]:
    """sparse_indices and sparse_values, as the module's document says. Raises ValueError on arguments that it excludes."""
    whole_range(_check, sparse_mode, pre_tokens, next_tokens)
    _check.dtype("query", query, _FLOATS)
    _check.dtype("key", key, (query.dtype,))
    _check.dtype("weights", weights, (query.dtype, torch.float32))
    names = ("layout_key", "actual_seq_lengths_key")
    found = sides(
        _check,
        query,
        key,
        layout_query,
        layout_key,
        actual_seq_lengths_query,
        actual_seq_lengths_key,
        block_table,
        names,
    )
    check_index(_check, query, key, weights, found, sparse_count)
    queries, keys = found.queries_of("query", query).float(), found.keys_of("key", key).float()
    factors = found.queries_of("weights", weights.unsqueeze(-1)).float()
    scores = queries.new_zeros(found.batch, queries.shape[2], keys.shape[2])
    heads_at_once = max(1, _CHUNK // max(scores.numel(), 1))
    for part, of_part in zip(queries.split(heads_at_once, 1), factors.split(heads_at_once, 1)):
        scores += ((part @ keys.transpose(2, 3)).relu() * of_part).sum(1)
    indices, values = best(found, scores, sparse_count, sparse_mode)
    return indices, values.to(query.dtype) if return_value else query.new_zeros(0)


def check_index(check: Checks, query: Tensor, key: Tensor, weights: Tensor, found: Sides, sparse_count: int) -> None:
    """Checks that the indexers share: one head of keys, sizes that fit, at least one key to choose."""
    if sparse_count < 1:
        check.refuse("sparse_count", "at least 1", sparse_count)
    if key.shape[-2] != 1 or key.shape[-1] != query.shape[-1]:
        check.refuse("key", f"of one head of {query.shape[-1]} elements", f"shape {tuple(key.shape)}")
    if weights.shape != query.shape[:-1]:
        check.refuse("weights", f"of shape {list(query.shape[:-1])}", f"shape {tuple(weights.shape)}")


def best(found: Sides, scores: Tensor, count: int, sparse_mode: int) -> tuple[Tensor, Tensor]:
    """The positions of the best `count` scores [B, S, Sk] that a query may look at, and those scores, in the layout of the queries."""
    seen = found.seen(sparse_mode)
    values, indices = scores.masked_fill(~seen, -torch.inf).sort(stable=True, dim=-1, descending=True)
    values, indices = values[..., :count], indices[..., :count].to(torch.int32)
    left = torch.arange(values.shape[-1]) >= seen.sum(-1, keepdim=True)
    missing = count - values.shape[-1]
    indices = torch.nn.functional.pad(indices.masked_fill(left, -1), (0, missing), value=-1)
    values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
    return found.output(indices.unsqueeze(1), -1), found.output(values.unsqueeze(1), -torch.inf)


OPERATOR = of_torch_npu(
    "npu_lightning_indexer",
    lightning_indexer,
    ge=[
        GeKernel(
            "LightningIndexer",
            renamed(lightning_indexer, return_values="return_value"),
            outputs=("sparse_indices", "sparse_values"),
        )
    ],
)
