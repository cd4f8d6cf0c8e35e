"""Autograd of the operator: its gradient is the same operator with the transposed counts.

Re-routing permutes rows, so the gradient is the inverse permutation of the incoming gradient, and the inverse of a re-routing is the
re-routing with `expert_token_num_per_rank.T`: one kernel call, one `MoeReRouting` node in graph mode, and differentiable again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import contract


def un_route(
    tokens: Tensor, expert_token_num_per_rank: Tensor, per_token_scales: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens and scales in expert order back to source-rank order, through the operator itself."""
    transposed = expert_token_num_per_rank.t().contiguous()
    return contract.operator()(tokens, transposed, per_token_scales=per_token_scales)[:2]


class _ReRouting(torch.autograd.Function):
    @staticmethod
    def forward(tokens: Tensor, counts: Tensor, scales: Tensor | None, options: dict[str, Any]) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return contract.operator()(tokens, counts, per_token_scales=scales, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        permute_tokens, permute_scales, permute_token_idx, expert_token_num = output
        ctx.save_for_backward(inputs[1])
        constant = [permute_token_idx, expert_token_num]
        if not ctx.needs_input_grad[0]:
            constant.append(permute_tokens)
        if not ctx.needs_input_grad[2]:
            constant.append(permute_scales)
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_tokens: Tensor | None, grad_scales: Tensor | None, *_: Any) -> tuple:
        (counts,) = ctx.saved_tensors
        if grad_tokens is None and grad_scales is None:
            return None, None, None, None
        moved = grad_tokens
        if moved is None:  # the scales still need tokens to travel with: one byte a row
            assert grad_scales is not None
            moved = grad_scales.new_zeros((grad_scales.shape[0], 1), dtype=torch.int8)
        moved, moved_scales = un_route(moved, counts, grad_scales)
        return moved if grad_tokens is not None else None, None, moved_scales if grad_scales is not None else None, None


def re_routing(
    tokens: Tensor, expert_token_num_per_rank: Tensor, *, per_token_scales: Tensor | None = None, **options: Any
) -> tuple[Tensor, ...]:
    """The kernel registered under Autograd. Without a gradient to record it only passes the call on."""
    needs_grad = torch.is_grad_enabled() and (
        tokens.requires_grad or (per_token_scales is not None and per_token_scales.requires_grad)
    )
    if needs_grad:
        return _ReRouting.apply(tokens, expert_token_num_per_rank, per_token_scales, options)
    return _ReRouting.forward(tokens, expert_token_num_per_rank, per_token_scales, options)
