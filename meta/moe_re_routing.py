"""Fake implementation of `npu_moe_re_routing`: output shapes and dtypes under FakeTensor, the meta device and symbolic sizes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moe_graph.foundation import contract, validation


def fake_re_routing(
    tokens: Tensor, expert_token_num_per_rank: Tensor, *, per_token_scales: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kernel registered under Meta. Shapes as in `moe_graph.foundation.contract`; bad input is rejected with the errors of
    `moe_graph.foundation.validation.check_arguments`. A (the token count) is only passed on, never compared with a number."""
    validation.check_arguments(tokens, expert_token_num_per_rank, per_token_scales=per_token_scales, **options)
    num_tokens = tokens.shape[0]
    if per_token_scales is None:
        permute_scales = tokens.new_empty((num_tokens,), dtype=contract.DEFAULT_SCALES_DTYPE)
    else:
        permute_scales = per_token_scales.new_empty(per_token_scales.shape)
    return (
        tokens.new_empty(tokens.shape),
        permute_scales,
        tokens.new_empty((num_tokens,), dtype=contract.INDEX_DTYPE),
        expert_token_num_per_rank.new_empty((expert_token_num_per_rank.shape[1],)),
    )
