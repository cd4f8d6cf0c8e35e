"""Derivatives and batches of the operator: each of them is the operator again.

    gradient   re-routing permutes rows, so it is the inverse permutation of the incoming gradient; the inverse of a re-routing is the
               re-routing with `expert_token_num_per_rank.T`
    tangent    the operator is linear in tokens and scales: it is their tangents, re-routed
    batch      tokens and scales of one routing lie side by side in longer rows; several routings are one with block-diagonal counts

So each is one kernel call, one `MoeReRouting` node in graph mode, and differentiable again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import compat, contract, transforms
from moe_graph.re_routing import device


def un_route(
    tokens: Tensor, expert_token_num_per_rank: Tensor, per_token_scales: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens and scales in expert order back to source-rank order, through the operator itself."""
    transposed = expert_token_num_per_rank.t().contiguous()
    return device.re_routing(tokens, transposed, per_token_scales=per_token_scales)[:2]


def _move(tokens: Tensor | None, counts: Tensor, scales: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Derivatives of tokens and scales through the operator; None for those that are not there."""
    if tokens is None and scales is None:
        return None, None
    rows = tokens
    if rows is None:  # the scales still need tokens to travel with: one byte a row
        assert scales is not None
        rows = scales.new_zeros((scales.shape[0], 1), dtype=torch.int8)
    moved, moved_scales, *_ = device.re_routing(rows, counts, per_token_scales=scales)
    return (None if tokens is None else moved), (None if scales is None else moved_scales)


class _ReRouting(compat.SingleLevelFunction):  # type: ignore[misc]
    @staticmethod
    def forward(
        tokens: Tensor, counts: Tensor, scales: Tensor | None, call: Callable[..., tuple], _: tuple[bool, bool]
    ) -> tuple[Tensor, ...]:
        return call(tokens, counts, per_token_scales=scales)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        tokens, counts, scales, _, differentiated = inputs
        ctx.save_for_backward(counts)
        ctx.save_for_forward(counts, tokens, scales)
        ctx.differentiated = differentiated
        moved, rest = output[:2], output[2:]
        ctx.mark_non_differentiable(*rest, *(x for x, derived in zip(moved, differentiated) if not derived))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_tokens: Tensor | None, grad_scales: Tensor | None, *_: Any) -> tuple:
        (counts,) = ctx.saved_tensors
        grad_tokens, grad_scales = _move(grad_tokens, counts.t().contiguous(), grad_scales)
        return grad_tokens, None, grad_scales, None, None

    @staticmethod
    def jvp(ctx: Any, tokens: Tensor | None, _counts: Any, scales: Tensor | None, *_: Any) -> tuple:
        counts, *of = ctx.saved_tensors
        moved = _move(tokens, counts, scales)
        wanted = zip(moved, of, ctx.differentiated)
        return *(torch.zeros_like(x) if y is None and derived else y for y, x, derived in wanted), None, None


def re_routing(
    tokens: Tensor, expert_token_num_per_rank: Tensor, *, per_token_scales: Tensor | None = None, **options: Any
) -> tuple[Tensor, ...]:
    """The kernel registered under Autograd. Without a derivative to take it only passes the call on."""
    counts, scales = expert_token_num_per_rank, per_token_scales
    call = functools.partial(transforms.below_autograd, contract.operator(), **options)
    differentiated = transforms.is_differentiated(tokens), transforms.is_differentiated(scales)
    if any(differentiated):
        return transforms.record(_ReRouting, tokens, counts, scales, transforms.with_modes(call), differentiated)
    return call(tokens, counts, per_token_scales=scales)


def _over_a_batch(
    batch: transforms.Batch,
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    *,
    per_token_scales: Tensor | None = None,
    **options: Any,
) -> tuple[tuple[Tensor, ...], tuple[bool, ...]]:
    counts, scales = expert_token_num_per_rank, per_token_scales
    if counts in batch:
        return _of_routings(batch, tokens, counts, scales, options), (True, scales is not None or True, True, True)
    found = device.re_routing(
        _side_by_side(tokens) if tokens in batch else tokens,
        counts,
        per_token_scales=_side_by_side(scales) if scales is not None and scales in batch else scales,
        **options,
    )
    moved_tokens, moved_scales, *rest = found
    if tokens in batch:
        moved_tokens = _apart(moved_tokens, tokens)
    if scales is not None and scales in batch:
        moved_scales = _apart(moved_scales, scales)
    return (moved_tokens, moved_scales, *rest), (tokens in batch, scales in batch, False, False)


def _side_by_side(x: Tensor) -> Tensor:
    """[B, A, ...] -> [A, the rest in one]"""
    rows = x.movedim(0, 1)
    return rows.reshape(rows.shape[0], rows[:1].numel() if rows.shape[0] else rows.shape[1:].numel())


def _apart(moved: Tensor, like: Tensor) -> Tensor:
    """The way back to the shape of `like` [B, A, ...]."""
    return moved.reshape(like.shape[1], like.shape[0], *like.shape[2:]).movedim(1, 0)


def _of_routings(
    batch: transforms.Batch, tokens: Tensor, counts: Tensor, scales: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, ...]:
    """Counts [B, N, E]: B routings are the one of B*A tokens from B*N ranks for B*E experts, of each sample its own."""
    samples, ranks, experts = counts.shape
    tokens = batch.whole(tokens)
    length = tokens.shape[1]
    # A sample that has too many tokens must not take another's: then no count is right, and the operator says so.
    wrong = (counts.sum((1, 2)) != length).any()
    blocks = torch.diag_embed((counts + wrong).movedim(0, -1)).permute(2, 0, 3, 1)
    moved, moved_scales, index, num = device.re_routing(
        tokens.reshape(-1, *tokens.shape[2:]),
        blocks.reshape(samples * ranks, samples * experts).to(counts.dtype),
        per_token_scales=None if scales is None else batch.whole(scales).flatten(0, 1),
        **options,
    )
    before = torch.arange(samples, dtype=counts.dtype, device=counts.device).unsqueeze(1) * length
    num = num.view(samples, experts)
    if options.get("expert_token_num_type") == contract.CUMSUM:
        num = num - before
    index = index.view(samples, length) - before.to(index.dtype)
    return moved.view(tokens.shape), moved_scales.view(samples, length, *moved_scales.shape[1:]), index, num


vmap = transforms.vmap_kernels(contract.SCHEMA, contract.operator, _over_a_batch)
"""The kernels registered for vmap, by their keys."""
