"""The Python front end: `moe_re_routing` with named outputs and an `out=` form, and its exact inverse `moe_un_routing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import compat, contract, transforms
from moe_graph.foundation.contract import MoeReRoutingOutput, MoeUnRoutingOutput
from moe_graph.re_routing import device, fallback
from moe_graph.re_routing.autograd import un_route
from moe_graph.re_routing.buffers import check_buffers, has_memory


def moe_re_routing(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    *,
    per_token_scales: Tensor | None = None,
    expert_token_num_type: int = contract.COUNT,
    idx_type: int = contract.GATHER,
    tokens_dtype: int | None = None,
    out: Sequence[Tensor | None] | None = None,
) -> MoeReRoutingOutput:
    """Move tokens from source-rank order to expert order (`torch.ops.npu.npu_moe_re_routing`).

    Args:
        tokens: [A, H], any dtype (the NPU kernel: float16, bfloat16, int8; on Ascend 950 float8 too). A = 0 is legal.
        expert_token_num_per_rank: [N, E] int32 or int64, element [r, e] the tokens from rank r for expert e; zeros are legal. Sums to A.
        per_token_scales: [A], [A, S] or [A, K/64, 2], moved with the tokens.
        expert_token_num_type: 1 tokens per expert (the kernel's only mode), 0 their inclusive running sum.
        idx_type: 0 gather index, `permute_tokens[d] = tokens[idx[d]]`; 1 scatter index, `permute_tokens[idx[s]] = tokens[s]`.
        tokens_dtype: None, 290 (hifloat8), 296 (float4_e2m1fn_x2) or 297 (float4_e1m2fn_x2) for tokens stored as uint8.
        out: a buffer, or None, for each of the four outputs. They must have the outputs' exact shape, dtype and device, be
            contiguous and share no memory with each other or with an input. Not differentiable.

    Returns:
        MoeReRoutingOutput(permute_tokens, permute_per_token_scales, permute_token_idx, expert_token_num)

    Raises:
        ValueError: bad shape, dtype, device or attribute; on CPU tensors (elsewhere see `moe_graph.check_devices`) also a negative count or
            counts that do not sum to A. Nothing has been written then.
    """
    arguments: dict[str, Any] = dict(
        per_token_scales=per_token_scales, expert_token_num_type=expert_token_num_type, idx_type=idx_type
    )
    if tokens_dtype is not None:  # passed on only then: older schemas lack it
        if not compat.is_compiling() and not compat.has_argument(contract.operator(), "tokens_dtype"):
            raise ValueError(f"{contract.NAME}: tokens_dtype must be None with this torch_npu, got {tokens_dtype}")
        arguments["tokens_dtype"] = tokens_dtype
    if out is None:
        return device.re_routing(tokens, expert_token_num_per_rank, **arguments)

    check_buffers(out, tokens, expert_token_num_per_rank, **arguments)
    if tokens.device.type == "cpu" and has_memory(tokens):
        with torch.no_grad():
            return MoeReRoutingOutput(*fallback.re_routing(tokens, expert_token_num_per_rank, **arguments, out=out))
    # A device's own kernel, or the fake implementation, allocates its outputs.
    results = device.re_routing(tokens, expert_token_num_per_rank, **arguments)
    return MoeReRoutingOutput(*(r if buffer is None else buffer.copy_(r) for buffer, r in zip(out, results)))


def moe_un_routing(
    tokens: Tensor, expert_token_num_per_rank: Tensor, per_token_scales: Tensor | None = None
) -> MoeUnRoutingOutput:
    """Move tokens from expert order back to source-rank order: the exact inverse of `moe_re_routing`.

    The inverse of a re-routing is the re-routing with the transposed counts, so this is one call of the same operator and one
    `MoeReRouting` node in graph mode, at copy speed, where sorting `permute_token_idx` costs a cast, a sort, a cast and a gather.

    Args:
        tokens: [A, H] in expert order, for instance what the experts made of `permute_tokens`.
        expert_token_num_per_rank: [N, E], the counts that were given to `moe_re_routing` (not transposed).
        per_token_scales: [A], [A, S] or [A, K/64, 2] in expert order, or None.

    Returns:
        MoeUnRoutingOutput(tokens, per_token_scales), the scales None if none were given.

    Raises:
        ValueError: as `moe_re_routing`. Messages show the counts as the operator sees them, transposed.
    """
    if expert_token_num_per_rank.dim() != 2:
        raise ValueError(
            "moe_un_routing: expert_token_num_per_rank must be of shape [N, E] (rank 2), "
            f"got shape {tuple(expert_token_num_per_rank.shape)}"
        )
    if per_token_scales is None and _is_fallback_alone(tokens, expert_token_num_per_rank):
        return MoeUnRoutingOutput(fallback.un_routing(tokens, expert_token_num_per_rank), None)
    source_tokens, source_scales = un_route(tokens, expert_token_num_per_rank, per_token_scales)
    return MoeUnRoutingOutput(source_tokens, None if per_token_scales is None else source_scales)


def _is_fallback_alone(tokens: Tensor, counts: Tensor) -> bool:
    """Would a call of the operator come to the fallback, with nobody to look on? Then what is not asked for need not be computed."""
    return (
        not compat.is_compiling()
        and transforms.finds_fallback(contract.operator(), tokens, counts)
        and not transforms.is_differentiated(tokens)
        and not torch._C._autograd._profiler_enabled()
    )
