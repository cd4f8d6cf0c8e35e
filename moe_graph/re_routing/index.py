"""The index computation of the operator: prefix sums over N x E chunks, then one pass over A. No loop, no device sync.

Memory is O(A + N*E). Positions are computed in the dtype of the counts, which holds A, and returned as int32. Counts in host memory go
through NumPy, whose calls cost a third of torch's: at decode the calls are all there is.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from moe_graph.foundation import contract, transforms

_UNSIGNED = {torch.int32: numpy.uint32, torch.int64: numpy.uint64}


def gather_index(expert_token_num_per_rank: Tensor, num_tokens: int) -> Tensor:
    """Source position of every destination position: `permute_tokens[d] == tokens[gather_index[d]]`. int32 [A]

    Inside a chunk source and destination advance together, so the distance between them is one number per chunk: the difference of
    the chunk's ends in the two orders. Repeated over the chunk's tokens it leads from every destination position to its source.
    """
    counts = expert_token_num_per_rank  # [N, E]: its rows are the source order
    ranks, experts = counts.shape
    by_expert = counts.t().contiguous().view(-1)  # [E*N]: chunk sizes in destination order
    source_ends = counts.reshape(-1).cumsum(0, dtype=counts.dtype).view(ranks, experts)
    ends = by_expert.cumsum(0, dtype=counts.dtype)
    ends.view(experts, ranks).sub_(source_ends.t())  # now destination - source
    distance = ends.index_select(0, torch.repeat_interleave(by_expert, output_size=num_tokens))
    index = torch.arange(num_tokens, dtype=counts.dtype, device=counts.device).sub_(distance)
    return index.to(contract.INDEX_DTYPE)


def gather_index_on_host(expert_token_num_per_rank: Tensor, num_tokens: int) -> Tensor | None:
    """The same for counts in host memory. None if a count is negative, if they do not sum to `num_tokens`, or if they lie elsewhere."""
    if not transforms.is_ordinary(expert_token_num_per_rank):
        return None
    counts = expert_token_num_per_rank.numpy()
    by_expert = counts.T.reshape(-1)
    if (
        by_expert.view(_UNSIGNED[expert_token_num_per_rank.dtype]).max() > num_tokens
    ):  # as an unsigned number a negative one is large
        return None
    distance = by_expert.cumsum(dtype=numpy.int64)  # no count is above A, so it cannot wrap around
    if distance[-1] != num_tokens:
        return None
    if num_tokens == 0:
        return torch.empty(0, dtype=contract.INDEX_DTYPE)  # of an empty array torch would take the stride for 0
    distance -= counts.reshape(-1).cumsum(dtype=numpy.int64).reshape(counts.shape).T.reshape(-1)
    index = distance.astype(numpy.int32).repeat(by_expert)
    numpy.subtract(numpy.arange(num_tokens, dtype=numpy.int32), index, out=index)
    return torch.from_numpy(index)


def scatter_index(expert_token_num_per_rank: Tensor, num_tokens: int) -> Tensor:
    """Destination position of every source position: the gather index of the inverse, which has the transposed counts. int32 [A]"""
    return gather_index(expert_token_num_per_rank.t(), num_tokens)


def expert_token_num(expert_token_num_per_rank: Tensor, expert_token_num_type: int) -> Tensor:
    """Tokens per expert [E] (count mode), or their inclusive running sum (cumsum mode), in the dtype of the counts."""
    num = expert_token_num_per_rank.sum(0, dtype=expert_token_num_per_rank.dtype)
    return num.cumsum(0, dtype=num.dtype) if expert_token_num_type == contract.CUMSUM else num
