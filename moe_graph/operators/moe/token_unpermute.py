"""`npu_moe_token_unpermute(permuted_tokens, sorted_indices, probs=None, ...)`: the way back of `npu_moe_token_permute`, weighted.

    permuted_tokens [M, H], sorted_indices [N * K] int32 or int64, the place of each copy
    probs [N, K]                the weights; without them K = 1 and the weight is 1
    unpermuted_tokens [N, H]    sum over k of permuted_tokens[sorted_indices[i * K + k]] * probs[i, k], dtype of permuted_tokens

restore_shape belongs to padded_mode and is not looked at: torch_npu's adapter hands the kernel one in every call, and programs give theirs.

A place from M on is that of a copy that the permutation has dropped; it adds nothing. Computed in float32 and rounded once.

Sources: the operator's page in the torch_npu documentation, the document of aclnnMoeTokenUnpermute, torch_npu's fake implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import declare

_check = Checks("npu_moe_token_unpermute")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_K = 512


def _check_arguments(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None,
    padded_mode: bool,
) -> int | torch.SymInt:
    """K. Raises ValueError on what the document excludes."""
    if padded_mode:
        _check.refuse("padded_mode", "False, the only mode that the operator supports", padded_mode)
    _check.dtype("permuted_tokens", permuted_tokens, DTYPES)
    _check.rank("permuted_tokens", permuted_tokens, (2,), "[M, H]")
    _check.dtype("sorted_indices", sorted_indices, (torch.int32, torch.int64))
    _check.rank("sorted_indices", sorted_indices, (1,), "[N * K]")
    _check.device("sorted_indices", sorted_indices, "permuted_tokens", permuted_tokens)
    if probs is None:
        return 1
    _check.dtype("probs", probs, DTYPES)
    _check.rank("probs", probs, (2,), "[N, K]")
    _check.device("probs", probs, "permuted_tokens", permuted_tokens)
    k = probs.shape[1]
    _check.size(k >= 1, "probs", "of shape [N, K] with K >= 1", probs)
    _check.size(k <= MAX_K, "probs", f"of shape [N, K] with K <= {MAX_K}", probs)
    length = sorted_indices.shape[0]
    _check.size(probs.shape[0] * k == length, "probs", f"of N * K = {length} elements, as sorted_indices", probs)
    return k


def fake(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> Tensor:
    """Shape of unpermuted_tokens."""
    k = _check_arguments(permuted_tokens, sorted_indices, probs, padded_mode)
    return permuted_tokens.new_empty((sorted_indices.shape[0] // k, permuted_tokens.shape[1]))


def token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> Tensor:
    """unpermuted_tokens, as the module's document says. Raises ValueError on what it excludes."""
    k = _check_arguments(permuted_tokens, sorted_indices, probs, padded_mode)
    # A row of zeros more, for the copies that were dropped.
    rows = torch.nn.functional.pad(permuted_tokens, (0, 0, 0, 1))
    copies = rows.index_select(0, sorted_indices.clamp(max=len(permuted_tokens)))
    if probs is None:
        return copies
    copies = copies.unflatten(0, (probs.shape[0], k)).float()
    return (copies * probs.float().unsqueeze(-1)).sum(1).to(permuted_tokens.dtype)


OPERATOR = declare(
    "npu_moe_token_unpermute(Tensor permuted_tokens, Tensor sorted_indices, Tensor? probs=None, bool padded_mode=False, "
    "int[]? restore_shape=None) -> Tensor",
    fake=fake,
    fallback=token_unpermute,
    differentiable=True,
)
