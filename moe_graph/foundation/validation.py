"""The one validation of the operator's arguments: fake implementation, eager fallback and converter call it.

`check_arguments` looks at shapes, dtypes and attributes only; sizes may be symbolic, and A is never compared with a number then, so that
one compilation serves every token count. `check_counts` looks at values and so synchronizes with a device.
Every error is a ValueError that names the argument, what came and what is allowed.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from moe_graph.foundation import contract


def _refuse(argument: str, allowed: str, got: object) -> None:
    raise ValueError(f"{contract.NAME}: {argument} must be {allowed}, got {got}")


def _check_size(condition: bool | torch.SymBool, argument: str, allowed: str, shape: torch.Size) -> None:
    if condition is not True:  # a symbolic condition becomes a guard, or a run-time assertion
        torch._check_value(
            condition, lambda: f"{contract.NAME}: {argument} must be {allowed}, got shape {tuple(shape)}"
        )


def _check_value(argument: str, value: object, allowed: Collection) -> None:
    # bool is an int to Python: an attribute given as True is a slip, not a mode.
    if isinstance(value, bool) or value not in allowed:
        _refuse(argument, f"one of {', '.join(map(str, allowed))}", repr(value))


def check_arguments(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    *,
    per_token_scales: Tensor | None = None,
    expert_token_num_type: int = contract.COUNT,
    idx_type: int = contract.GATHER,
    tokens_dtype: int | None = None,
) -> None:
    """Raise ValueError unless shapes, dtypes, devices and attributes fit the contract.

    tokens [A, H] with H >= 1, expert_token_num_per_rank [N, E] int32 or int64 with N, E >= 1, per_token_scales [A], [A, S] or
    [A, K/64, 2]. The kernel's own limits (dtypes of a product, H < 16384) are not the contract's: see `moe_graph.foundation.product`.
    """
    counts, scales = expert_token_num_per_rank, per_token_scales
    for name, x in (("tokens", tokens), ("per_token_scales", scales)):
        if (
            x is not None
            and x.is_quantized
            and x.qscheme() not in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        ):
            _refuse(name, "quantized by tensor, if it is quantized", x.qscheme())
    _check_value("expert_token_num_type", expert_token_num_type, (contract.CUMSUM, contract.COUNT))
    _check_value("idx_type", idx_type, (contract.GATHER, contract.SCATTER))
    if tokens_dtype is not None:
        _check_value("tokens_dtype", tokens_dtype, contract.TOKENS_DTYPES)
        if tokens.dtype != torch.uint8:
            _refuse("tokens", f"torch.uint8 when tokens_dtype={tokens_dtype} is given", tokens.dtype)

    if tokens.dim() != 2:
        _refuse("tokens", "of shape [A, H] (rank 2)", f"shape {tuple(tokens.shape)}")
    _check_size(tokens.shape[1] >= 1, "tokens", "of shape [A, H] with H >= 1", tokens.shape)
    if isinstance(tokens.shape[0], int) and tokens.shape[0] > contract.MAX_TOKENS:
        _refuse("tokens", f"of at most {contract.MAX_TOKENS} rows (permute_token_idx is int32)", tokens.shape[0])

    if counts.dtype not in contract.COUNT_DTYPES:
        _refuse("expert_token_num_per_rank", "torch.int32 or torch.int64", counts.dtype)
    if counts.dim() != 2:
        _refuse("expert_token_num_per_rank", "of shape [N, E] (rank 2)", f"shape {tuple(counts.shape)}")
    for size in counts.shape:
        _check_size(size >= 1, "expert_token_num_per_rank", "of shape [N, E] with N >= 1 and E >= 1", counts.shape)
    if counts.device != tokens.device:
        _refuse("expert_token_num_per_rank", f"on the device of tokens, {tokens.device}", counts.device)

    if scales is not None:
        if not 1 <= scales.dim() <= 3:
            _refuse("per_token_scales", "of shape [A], [A, S] or [A, K/64, 2]", f"shape {tuple(scales.shape)}")
        if scales.dim() == 3:
            _check_size(scales.shape[2] == 2, "per_token_scales", "[A, K/64, 2] when it has rank 3", scales.shape)
        _check_size(
            scales.shape[0] == tokens.shape[0],
            "per_token_scales",
            f"of length A = {tokens.shape[0]}, the rows of tokens",
            scales.shape,
        )
        if scales.device != tokens.device:
            _refuse("per_token_scales", f"on the device of tokens, {tokens.device}", scales.device)


def check_counts(expert_token_num_per_rank: Tensor, num_tokens: int) -> None:
    """Raise ValueError if a count is negative or the counts do not sum to `num_tokens`. Reads values: a device synchronizes."""
    counts = expert_token_num_per_rank.cpu()
    smallest, largest = (int(bound) for bound in counts.aminmax())
    if smallest < 0:
        _refuse("expert_token_num_per_rank", "counts >= 0", f"a negative count, {smallest}")
    # Counts in [0, A] cannot wrap their sum around to A; larger ones are added exactly, for the message.
    total = int(counts.sum(dtype=torch.int64)) if largest <= num_tokens else sum(counts.flatten().tolist())
    if total != num_tokens:
        _refuse("expert_token_num_per_rank", f"counts that sum to A = {num_tokens}, the rows of tokens", f"sum {total}")
