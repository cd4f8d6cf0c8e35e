"""What the operator's benchmarks compare: inputs, and the ways that a program without this package goes."""

from __future__ import annotations

import torch
from torch import Tensor


def make(count: int, hidden: int, ranks: int, experts: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens [count, hidden], counts [ranks, experts] that sum to their number, and scales [count]."""
    chunk = torch.randint(0, ranks * experts, (count,))
    counts = torch.bincount(chunk, minlength=ranks * experts).view(ranks, experts).to(torch.int32)
    return torch.randint(-128, 127, (count, hidden), dtype=torch.int8).to(dtype), counts, torch.rand(count)


def split_and_cat(tokens: Tensor, counts: Tensor) -> Tensor:
    """Chunks of the tokens with the counts on the host, concatenated in the other order: the common Python way."""
    ranks, experts = counts.shape
    chunks = tokens.split(counts.flatten().tolist())
    return torch.cat([chunks[rank * experts + expert] for expert in range(experts) for rank in range(ranks)])


def sorted_back(tokens: Tensor, index: Tensor) -> Tensor:
    """The way back that public models use today: exact only up to 2**24 tokens."""
    return tokens.index_select(0, index.float().argsort().int())
