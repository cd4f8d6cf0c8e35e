"""ATB's `npu_paged_cache_load(key_cache, value_cache, block_table, context_lens, *, seq_starts, cumsum)`: sequences out of paged caches.

    key_cache [blocks, block_size, N, D], value_cache [blocks, block_size, N, Dv]   block_table [B, places] int32
    context_lens  [B] int32: how many tokens of each sequence; with cumsum [B + 1]: where each begins, and the end
    seq_starts    [B] int32 or none: from which token on; a block is read from its beginning, so start // block_size * block_size
    -> key [T, N, D], value [T, N, Dv], the sequences one behind another; or `key` and `value`, changed

Source: op-plugin's test of the operator. The format NZ is not served.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_paged_cache_load")


def paged_cache_load(
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    *,
    seq_starts: Tensor | None = None,
    cumsum: bool = False,
) -> tuple[Tensor, Tensor]:
    """key and value. Raises ValueError for a sequence that the tables do not hold."""
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        _check.rank(name, cache, (4,), "[blocks, block_size, N, D]")
        same = cache.shape[:2] == key_cache.shape[:2]
        _check.size(same, name, f"of key_cache's {list(key_cache.shape[:2])} blocks and rows", cache)
    lengths = (context_lens.diff() if cumsum else context_lens).long()
    _check.size(lengths.dim() == 1 and len(lengths) == len(block_table), "context_lens", "one a sequence", context_lens)
    size = key_cache.shape[1]
    first = torch.zeros_like(lengths) if seq_starts is None else seq_starts.long() // size
    most = (block_table.shape[1] - first) * size
    if bool(((lengths < 0) | (lengths > most)).any()):
        _check.refuse("context_lens", f"from 0 to what block_table holds, {most.tolist()}", lengths.tolist())
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
    begin = lengths.cumsum(0) - lengths
    row = torch.arange(len(sequence)) - begin[sequence]
    block = block_table.long()[sequence, first[sequence] + row // size]
    if bool(((block < 0) | (block >= len(key_cache))).any()):
        _check.refuse("block_table", f"from 0 to {len(key_cache) - 1} where it is read", block.tolist())
    return key_cache[block, row % size], value_cache[block, row % size]


def paged_cache_load_out(
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    *,
    seq_starts: Tensor | None = None,
    cumsum: bool = False,
    key: Tensor,
    value: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same in `key` and `value`, which must have these shapes."""
    found = paged_cache_load(key_cache, value_cache, block_table, context_lens, seq_starts=seq_starts, cumsum=cumsum)
    for name, out, loaded in (("key", key, found[0]), ("value", value, found[1])):
        _check.size(out.shape == loaded.shape, name, f"of shape {list(loaded.shape)}", out)
        out.copy_(loaded)
    return key, value


OPERATOR = of_torch_npu("npu_paged_cache_load", paged_cache_load, namespace="atb")
OUT_OPERATOR = of_torch_npu("npu_paged_cache_load.out", paged_cache_load_out, namespace="atb")
