"""`npu_moe_token_permute(tokens, indices, ...)`: tokens copied to their K experts each, the copies sorted by expert.

    tokens [N, H], indices [N, K] or [N] (K = 1) int32 or int64, the experts of each token
    permuted_tokens [M, H]      permuted_tokens[sorted_indices[i]] = tokens[i // K], those of the first M places
    sorted_indices [N * K]      int32, the place of each copy in the stable order by expert

M = N * K without num_out_tokens or with 0; num_out_tokens, at most N * K, if it is positive; N * K + num_out_tokens if it is negative.

Sources: the operator's page in the torch_npu documentation, the document of aclnnMoeTokenPermute, torch_npu's fake implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import declare

_check = Checks("npu_moe_token_permute")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int8)
MAX_K = 512


def _check_arguments(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None, padded_mode: bool
) -> int | torch.SymInt:
    """K. Raises ValueError on what the document excludes."""
    if padded_mode:
        _check.refuse("padded_mode", "False, the only mode that the operator supports", padded_mode)
    _check.dtype("tokens", tokens, DTYPES)
    _check.rank("tokens", tokens, (2,), "[N, H]")
    _check.dtype("indices", indices, (torch.int32, torch.int64))
    _check.rank("indices", indices, (1, 2), "[N, K] or [N]")
    _check.size(
        indices.shape[0] == tokens.shape[0], "indices", f"of first size {tokens.shape[0]}, that of tokens", indices
    )
    _check.device("indices", indices, "tokens", tokens)
    k = 1 if indices.dim() == 1 else indices.shape[1]
    _check.size(k >= 1, "indices", "of shape [N, K] with K >= 1", indices)
    _check.size(k <= MAX_K, "indices", f"of shape [N, K] with K <= {MAX_K}", indices)
    if num_out_tokens is not None and num_out_tokens < 0:
        _check.size(
            indices.shape[0] * k + num_out_tokens >= 0, "num_out_tokens", f"at least -N * K, {num_out_tokens}", indices
        )
    return k


def _rows(total: int | torch.SymInt, num_out_tokens: int | None) -> int | torch.SymInt:
    wanted = num_out_tokens or 0
    return torch.sym_min(wanted, total) if wanted > 0 else total + wanted


def fake(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of permuted_tokens and sorted_indices."""
    total = tokens.shape[0] * _check_arguments(tokens, indices, num_out_tokens, padded_mode)
    rows = _rows(total, num_out_tokens)
    return tokens.new_empty((rows, tokens.shape[1])), tokens.new_empty((total,), dtype=torch.int32)


def _refined_fake(
    theirs: Callable[..., Any], tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, *padded: bool
) -> tuple[Tensor, Tensor]:
    """torch_npu's, whose min(num_out_tokens, N * K) is for one N alone: here N * K may stay symbolic."""
    total = indices.numel()
    if num_out_tokens is None or num_out_tokens <= 0 or isinstance(total, int):
        permuted, places = theirs(tokens, indices, num_out_tokens, *padded)
        return permuted, places
    permuted, places = theirs(tokens, indices, None, *padded)
    return permuted.new_empty((_rows(total, num_out_tokens), tokens.shape[1])), places


def token_permute(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """permuted_tokens and sorted_indices, as the module's document says. Raises ValueError on what it excludes."""
    k = _check_arguments(tokens, indices, num_out_tokens, padded_mode)
    copies = indices.flatten().sort(stable=True).indices
    places = torch.empty_like(copies).scatter(0, copies, torch.arange(len(copies), device=copies.device))
    kept = copies[: _rows(len(copies), num_out_tokens)]
    return tokens.index_select(0, kept // k), places.to(torch.int32)


OPERATOR = declare(
    "npu_moe_token_permute(Tensor tokens, Tensor indices, int? num_out_tokens=None, bool padded_mode=False) -> (Tensor, Tensor)",
    fake=fake,
    fallback=token_permute,
    differentiable=True,
    refined_fake=_refined_fake,
)
