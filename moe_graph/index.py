"""The index computation of the operator: prefix sums over N x E chunks, then one pass over A. No loop, no device sync.

Memory is O(A + N*E). Computed in int32: positions are bounded by A, and `permute_token_idx` is int32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph import contract


def _exclusive_sum(sizes: Tensor) -> Tensor:
    """Start of each chunk when chunks of these sizes stand one after another. [K] -> int32 [K]"""
    return sizes.cumsum(0, dtype=contract.INDEX_DTYPE).sub_(sizes)


def gather_index(expert_token_num_per_rank: Tensor, num_tokens: int) -> Tensor:
    """Source position of every destination position: `permute_tokens[d] == tokens[gather_index[d]]`. int32 [A]

    Inside a chunk source and destination advance together, so their distance is one number per chunk; repeating it over the
    chunk's tokens and adding the destination position gives the source position.
    """
    counts = expert_token_num_per_rank  # [N, E], chunks in source order
    by_expert = counts.t().reshape(-1)  # [E*N], chunks in destination order
    source = _exclusive_sum(counts.reshape(-1)).view(counts.shape).t().reshape(-1)
    distance = source.sub_(_exclusive_sum(by_expert))
    index = torch.repeat_interleave(distance, by_expert, output_size=num_tokens)
    return index.add_(torch.arange(num_tokens, dtype=index.dtype, device=index.device))


def scatter_index(expert_token_num_per_rank: Tensor, num_tokens: int) -> Tensor:
    """Destination position of every source position: the gather index of the inverse, which has the transposed counts. int32 [A]"""
    return gather_index(expert_token_num_per_rank.t(), num_tokens)


def expert_token_num(expert_token_num_per_rank: Tensor, expert_token_num_type: int) -> Tensor:
    """Tokens per expert [E] (count mode), or their inclusive running sum (cumsum mode), in the dtype of the counts."""
    num = expert_token_num_per_rank.sum(0, dtype=expert_token_num_per_rank.dtype)
    return num.cumsum(0, dtype=num.dtype) if expert_token_num_type == contract.CUMSUM else num
