"""The eager fallback: the operator composed of `index_select` and prefix sums, for tensors of any device and any dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.foundation import contract, settings, validation
from moe_graph.re_routing import index

# The operator is pure data movement. Rows of dtypes without an index_select kernel (float8, float4, unsigned, ...) move as
# integers of the same width; `Tensor.view(dtype)` between equal widths works for any strides.
_INDEX_SELECT_DTYPES = frozenset(
    {
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
        *(torch.qint8, torch.quint8, torch.qint32),  # a quantised tensor has no view of its bytes
    }
)
_INTEGER_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def take_rows(x: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """`x[rows]` along dimension 0 for any dtype, contiguous; into `out` if given. x [A, ...], rows int32 or int64 [B] -> [B, ...]"""
    if x.dtype in _INDEX_SELECT_DTYPES:
        return torch.index_select(x, 0, rows, out=out)
    carrier = _INTEGER_OF_WIDTH[x.element_size()]
    moved = torch.index_select(_as_stored(x).view(carrier), 0, rows, out=None if out is None else out.view(carrier))
    return moved.view(x.dtype)


def _as_stored(x: Tensor) -> Tensor:
    """A tensor whose bytes are its values: conjugation and negation that torch has only noted down are carried out."""
    return x.resolve_conj().resolve_neg()


def _checked_gather_index(counts: Tensor, num_tokens: int) -> Tensor:
    """The gather index, or the ValueError of `validation.check_counts`.

    On the CPU and the simulated device counts are always checked first: given a negative count, or a sum other than A, the CPU's
    repeat_interleave writes outside of its output before it refuses, or crashes.
    """
    if settings.checks_values(counts):
        on_host = index.gather_index_on_host(counts, num_tokens)
        if on_host is not None:
            return on_host
        validation.check_counts(counts, num_tokens)
    return index.gather_index(counts, num_tokens)


def un_routing(tokens: Tensor, expert_token_num_per_rank: Tensor) -> Tensor:
    """The tokens alone of the operator's call with the transposed counts, which is the way back. Raises ValueError as `re_routing`."""
    counts = expert_token_num_per_rank.t()
    validation.check_arguments(tokens, counts)
    return take_rows(tokens, _checked_gather_index(counts, tokens.shape[0]))


def re_routing(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    *,
    per_token_scales: Tensor | None = None,
    expert_token_num_type: int = contract.COUNT,
    idx_type: int = contract.GATHER,
    tokens_dtype: int | None = None,
    out: Sequence[Tensor | None] = (None, None, None, None),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`npu_moe_re_routing` on any device; the kernel registered under CompositeExplicitAutograd.

    Shapes and dtypes as in `moe_graph.moe_re_routing`. `out` holds a buffer, or None, for each output; buffers are taken as valid.
    Raises ValueError (see `moe_graph.foundation.validation`) before anything is written.
    """
    counts, scales = expert_token_num_per_rank, per_token_scales
    validation.check_arguments(
        tokens,
        counts,
        per_token_scales=scales,
        expert_token_num_type=expert_token_num_type,
        idx_type=idx_type,
        tokens_dtype=tokens_dtype,
    )
    num_tokens = tokens.shape[0]
    gather = _checked_gather_index(counts, num_tokens)

    out_tokens, out_scales, out_index, out_num = out
    permute_tokens = take_rows(tokens, gather, out_tokens)
    if scales is not None:
        permute_scales = take_rows(scales, gather, out_scales)
    elif out_scales is not None:
        permute_scales = out_scales.zero_()
    else:
        permute_scales = tokens.new_zeros(num_tokens, dtype=contract.DEFAULT_SCALES_DTYPE)
    chosen = gather if idx_type == contract.GATHER else index.scatter_index(counts, num_tokens)
    expert_num = index.expert_token_num(counts, expert_token_num_type)
    return (
        permute_tokens,
        permute_scales,
        chosen if out_index is None else out_index.copy_(chosen),
        expert_num if out_num is None else out_num.copy_(expert_num),
    )
