"""`npu_quant_lightning_indexer(query, key, weights, query_dequant_scale, key_dequant_scale, ...)`: `lightning_indexer` of int8.

    score of key j = sum over n of weights[n] * query_scale[n] * relu(query[n] @ key[j]) * key_scale[j]

    query, key           int8                          query_dequant_scale   [B, S, N] or [T, N], like weights float16
    key_dequant_scale    key's shape without its last size, float16          query_quant_mode, key_quant_mode   0: per token and head
    -> sparse_indices    as there

As the device: weights * query_scale is rounded to float16, so is relu(...) / 1024, which leaves the order as it is; the rest is float32.
Not served: float8_e4m3fn and hifloat8. Sources: the operator's page, and the roundings in its test in op-plugin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.attention.lightning_indexer import best, check_index
from moe_graph.operators.attention.sparse import ANY, sides, whole_range
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed

_check = Checks("npu_quant_lightning_indexer")
_SHRINK = 1024.0


def quant_lightning_indexer(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    query_dequant_scale: Tensor,
    key_dequant_scale: Tensor,
    query_quant_mode: int,
    key_quant_mode: int,
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
    query_dtype: int | None = None,
    key_dtype: int | None = None,
) -> Tensor:
    """sparse_indices, as the module's document says. Raises ValueError on arguments that it excludes."""
    whole_range(_check, sparse_mode, pre_tokens, next_tokens)
    _check.dtype("query", query, (torch.int8,))
    _check.dtype("key", key, (torch.int8,))
    for name, tensor in (("weights", weights), ("query_dequant_scale", query_dequant_scale)):
        _check.dtype(name, tensor, (torch.float16,))
    _check.dtype("key_dequant_scale", key_dequant_scale, (torch.float16,))
    _check.value("query_quant_mode", query_quant_mode, (0,))
    _check.value("key_quant_mode", key_quant_mode, (0,))
    _check.absent("query_dtype", query_dtype, "which is for hifloat8")
    _check.absent("key_dtype", key_dtype, "which is for hifloat8")
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
    if query_dequant_scale.shape != weights.shape:
        _check.refuse(
            "query_dequant_scale", f"of shape {list(weights.shape)}", f"shape {tuple(query_dequant_scale.shape)}"
        )
    if key_dequant_scale.shape != key.shape[:-1]:
        _check.refuse(
            "key_dequant_scale", f"of shape {list(key.shape[:-1])}", f"shape {tuple(key_dequant_scale.shape)}"
        )
    factors = found.queries_of("weights", (weights * query_dequant_scale).unsqueeze(-1)).float()
    queries, keys = (
        found.queries_of("query", query).float(),
        found.keys_of("key", key).float(),
    )  # products below 2^24: exact
    scores = queries.new_zeros(found.batch, queries.shape[2], keys.shape[2])
    for head in range(queries.shape[1]):
        products = (queries[:, head] @ keys[:, 0].transpose(1, 2)).relu() / _SHRINK
        scores += products.half().float() * factors[:, head]
    scores *= found.keys_of("key_dequant_scale", key_dequant_scale.unsqueeze(-1)).float()[:, 0].transpose(1, 2)
    return best(found, scores, sparse_count, sparse_mode)[0]


OPERATOR = of_torch_npu(
    "npu_quant_lightning_indexer",
    quant_lightning_indexer,
    ge=[GeKernel("QuantLightningIndexer", renamed(quant_lightning_indexer), outputs=("sparse_indices",))],
)
