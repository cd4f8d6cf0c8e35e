"""Mixture-of-Experts operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.foundation import contract
from moe_graph.foundation.product import current_product, refusal
from moe_graph.re_routing.buffers import has_memory


@kernel("MoeReRouting")
def moe_re_routing(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    per_token_scales: Tensor | None = None,
    *,
    expert_token_num_type: int = contract.COUNT,
    idx_type: int = contract.GATHER,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GE MoeReRouting: chunks (rank, expert) from rank-major to expert-major order. What the product's kernel lacks is refused.

    Written apart from `moe_graph.re_routing.index`, by a stable sort of the tokens' experts, so that the two check each other.
    """
    counts = expert_token_num_per_rank
    _check_product(
        tokens, per_token_scales=per_token_scales, expert_token_num_type=expert_token_num_type, idx_type=idx_type
    )
    gather = (
        _gather_index(counts, len(tokens)) if has_memory(counts) else counts.new_empty(len(tokens), dtype=torch.int64)
    )
    index = gather
    if idx_type == contract.SCATTER:
        index = torch.empty_like(gather)
        index[gather] = torch.arange(len(gather))
    scales = per_token_scales
    moved_scales = tokens.new_zeros(len(tokens), dtype=torch.float32) if scales is None else _rows(scales, gather)
    return _rows(tokens, gather), moved_scales, index.to(torch.int32), counts.sum(0, dtype=counts.dtype)


def _gather_index(counts: Tensor, num_tokens: int) -> Tensor:
    total = sum(counts.flatten().tolist())  # exact: a sum that wraps around would be repeated into too small a tensor
    if bool((counts < 0).any()) or total != num_tokens:
        raise ValueError(f"expert_token_num_per_rank must be >= 0 and sum to {num_tokens}, got sum {total}")
    experts = torch.arange(counts.shape[1]).expand(counts.shape).reshape(-1)  # of each chunk, in source order
    return torch.repeat_interleave(experts, counts.reshape(-1).long()).argsort(stable=True)


def _check_product(tokens: Tensor, **asked: Any) -> None:
    """Raise ValueError for what the kernel of the product lowered for does not serve. Types of GE that travel as uint8 pass."""
    refused = refusal(current_product(), tokens.view(torch.int8) if tokens.dtype == torch.uint8 else tokens, **asked)
    if refused:
        raise ValueError(refused)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """`x[rows]` for every dtype, by bytes: a float8 has no index kernel."""
    data = x.contiguous().view(torch.uint8) if x.dim() > 1 else x.contiguous().unsqueeze(1).view(torch.uint8)
    moved = data[rows].view(x.dtype)
    return moved if x.dim() > 1 else moved.squeeze(1)
