"""Tokens to their experts and back by a map: npu_moe_token_permute_with_routing_map and _unpermute_, with their gradients.

    routing_map [T, E] bool or int8: which experts a token goes to   probs [T, E]   tokens [T, H]

    permute, drop_and_pad False   rows by expert, in an expert by token: [R, H], R pairs in the map; their probs [R]; sorted_indices [R]
                                  int32: for each pair, token by token, its row.   num_out_tokens must be R
             drop_and_pad True    each expert has num_out_tokens // E rows: its tokens first, then others, in order; sorted_indices: the
                                  token of each row
    unpermute   restore_shape (T, H): each token's sum over its rows, times their probs if given

Sources: the documents of aclnnMoeTokenPermuteWithRoutingMap and aclnnMoeTokenUnpermuteWithRoutingMap (ops-transformer), and op-plugin's
tests. Sums are float32, rounded once. torchair has no converters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_moe_token_permute_with_routing_map")
_check_back = Checks("npu_moe_token_unpermute_with_routing_map")


def permute(
    tokens: Tensor,
    routing_map: Tensor,
    *,
    probs: Tensor | None = None,
    num_out_tokens: int | None = None,
    drop_and_pad: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The rows, their probs and sorted_indices. Raises ValueError if num_out_tokens is not the number of pairs."""
    _check.rank("tokens", tokens, (2,), "[T, H]")
    _check.rank("routing_map", routing_map, (2,), "[T, E]")
    _check.size(routing_map.shape[0] == tokens.shape[0], "routing_map", f"of T = {tokens.shape[0]} rows", routing_map)
    count, experts = routing_map.shape
    by_expert = routing_map.bool().t()
    rows = count if num_out_tokens is None else num_out_tokens
    if drop_and_pad:
        capacity = rows // experts
        if capacity > count:
            _check.refuse("num_out_tokens", f"at most E * T = {experts * count} with drop_and_pad", rows)
        token = by_expert.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[:, :capacity]
        given = None if probs is None else probs.t().gather(1, token).reshape(-1)
        return tokens[token.reshape(-1)], given, token.reshape(-1).to(torch.int32)
    token = by_expert.nonzero()[:, 1]
    if len(token) != rows:
        _check.refuse("num_out_tokens", f"{len(token)}, the pairs of routing_map, without drop_and_pad", rows)
    given = None if probs is None else probs.t().masked_select(by_expert)
    return tokens[token], given, token.sort(stable=True).indices.to(torch.int32)


def _pairs(
    sorted_indices: Tensor, routing_map: Tensor | None, count: int, experts: int, drop_and_pad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(token, row, expert) of each pair; the expert is known with a map, or rows of one number for each expert."""
    indices = sorted_indices.long()
    if drop_and_pad:
        row = torch.arange(len(indices))
        return indices, row, row // (len(indices) // experts) if experts else None
    if routing_map is not None:
        token, expert = routing_map.bool().nonzero().unbind(1)
        if len(token) != len(indices):
            _check_back.refuse("sorted_indices", f"of {len(token)}, the pairs of routing_map", len(indices))
        return token, indices, expert
    if count < 1 or len(indices) % count:
        _check_back.refuse("sorted_indices", f"of a multiple of T = {count} without routing_map", len(indices))
    return torch.arange(count).repeat_interleave(len(indices) // count), indices, None


def permute_grad(
    permuted_token_out_grad: Tensor,
    probs_grad: Tensor | None,
    sorted_indices: Tensor,
    routing_map: Tensor,
    experts_num: int,
    tokens_num: int,
    drop_and_pad: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of tokens and of probs."""
    token, row, expert = _pairs(sorted_indices, routing_map, tokens_num, experts_num, drop_and_pad)
    grad = torch.zeros((tokens_num, permuted_token_out_grad.shape[1]))
    grad.index_add_(0, token, permuted_token_out_grad.float()[row])
    if probs_grad is None:
        return grad.to(permuted_token_out_grad.dtype), None
    of_probs = torch.zeros((tokens_num, experts_num), dtype=probs_grad.dtype)
    of_probs[token, expert] = probs_grad[row]
    return grad.to(permuted_token_out_grad.dtype), of_probs


def unpermute_with_states(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    *,
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
    drop_and_pad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The tokens, and what the gradient takes: with drop_and_pad the rows by token, those tokens, the probs of the rows."""
    if probs is not None and routing_map is None and not drop_and_pad:
        _check_back.refuse("routing_map", "given with probs", None)
    experts = probs.shape[1] if probs is not None else routing_map.shape[1] if routing_map is not None else 0
    token, row, expert = _pairs(sorted_indices, routing_map, restore_shape[0], experts, drop_and_pad)
    values, weights = permuted_tokens.float()[row], None
    if probs is not None:
        weights = probs[token, expert]
        values = values * weights.float().unsqueeze(1)
    out = torch.zeros(tuple(restore_shape)).index_add_(0, token, values).to(permuted_tokens.dtype)
    if not drop_and_pad:
        return out, sorted_indices, sorted_indices, weights
    ordered = sorted_indices.sort(stable=True)
    return out, ordered.indices.to(sorted_indices.dtype), ordered.values, weights


def unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    *,
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
    drop_and_pad: bool = False,
) -> Tensor:
    """The tokens [T, H]."""
    return unpermute_with_states(
        permuted_tokens,
        sorted_indices,
        restore_shape,
        probs=probs,
        routing_map=routing_map,
        drop_and_pad=drop_and_pad,
    )[0]


def unpermute_grad(
    unpermuted_tokens_grad: Tensor,
    out_index: Tensor,
    permuted_token_id: Tensor,
    routing_map: Tensor | None = None,
    permuted_tokens: Tensor | None = None,
    probs: Tensor | None = None,
    drop_and_pad: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of permuted_tokens and of probs."""
    grad = unpermuted_tokens_grad.float()
    if drop_and_pad:
        token, row = permuted_token_id.long(), out_index.long()
        expert = None if probs is None else row // (len(row) // probs.shape[1])
    else:
        experts = 0 if routing_map is None else routing_map.shape[1]
        token, row, expert = _pairs(out_index, routing_map, len(grad), experts, False)
    values = grad[token]
    weighted = values if probs is None else values * probs[token, expert].float().unsqueeze(1)
    of_rows = torch.zeros((len(row), grad.shape[1])).index_copy_(0, row, weighted).to(unpermuted_tokens_grad.dtype)
    if probs is None:
        return of_rows, None
    if permuted_tokens is None:
        _check_back.refuse("permuted_tokens", "given with probs", None)
    assert permuted_tokens is not None
    of_probs = torch.zeros(probs.shape)
    of_probs[token, expert] = (values * permuted_tokens.float()[row]).sum(-1)
    return of_rows, of_probs.to(unpermuted_tokens_grad.dtype)


PERMUTE = of_torch_npu("npu_moe_token_permute_with_routing_map", permute)
PERMUTE_GRAD = of_torch_npu("npu_moe_token_permute_with_routing_map_grad", permute_grad)
UNPERMUTE = of_torch_npu("npu_moe_token_unpermute_with_routing_map", unpermute)
UNPERMUTE_STATES = of_torch_npu("_npu_moe_token_unpermute_with_routing_map", unpermute_with_states)
UNPERMUTE_GRAD = of_torch_npu("npu_moe_token_unpermute_with_routing_map_grad", unpermute_grad)
