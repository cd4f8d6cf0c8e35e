"""`npu_fused_causal_conv1d(x, weight, conv_states, ...)` and `_v2`, which writes its result into x: sequences convolved, with a cache.

    x [T, D], cut into sequences by query_start_loc [B + 1]; or [B, L, D], all of one length   weight [K, D], K = 3
    conv_states [lines, C, D], C >= K - 1, written to: the last rows of each sequence, at the end of its line

    line         cache_indices [B], or the sequence's number; pad_slot_id: the sequence is left alone (its result is 0 here, and not written
                 on a device)
    past         num_computed_tokens [B] 0: zeros, offset 0;  else the line's first offset + K - 1 rows, with offset =
                 num_accepted_tokens - 1, or C - (K - 1)
    p            past, then the sequence; its last min(C, len) rows go to the end of the line; then its first `offset` rows are cut off
    y[i]         sum over k of weight[k] * p[i + k];  residual_connection 1: + x[i]
                 conv_mode "pangu": it is 0 for i < K - 1 - num_computed_tokens

    Prefix caching (block_idx_last_scheduled_token): cache_indices [B, blocks]; the line that is read is at initial_state_idx, the one
    that is written at idx_last, and each line from idx_first up to it gets the K - 1 rows of p before the end of its block.

Source: the operator's page in the torch_npu documentation. Float32 inside, rounded once. bias, initial_state_mode, activation, run_mode,
max_query_len have no effect, as the page says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel

_check = Checks("npu_fused_causal_conv1d")
WIDTH = 3
_MODES = ("default", "pangu")


def _sequences(x: Tensor, query_start_loc: Tensor | None) -> Iterator[tuple[int, slice]]:
    """(number, rows of the flattened x) of each sequence."""
    if query_start_loc is None:
        if x.dim() != 3:
            _check.refuse("query_start_loc", "given for x [T, D]", None)
        starts = list(range(0, x.shape[0] * x.shape[1] + 1, x.shape[1]))
    else:
        starts = query_start_loc.tolist()
    rows = x.shape[:-1].numel()
    if starts[0] < 0 or starts[-1] > rows or any(later < earlier for earlier, later in zip(starts, starts[1:])):
        _check.refuse("query_start_loc", f"non-decreasing, from 0 to x's {rows} rows", starts)
    yield from enumerate(map(slice, starts, starts[1:]))


def _convolve(
    x: Tensor,
    weight: Tensor,
    conv_states: Tensor,
    y: Tensor,
    *,
    query_start_loc: Tensor | None = None,
    cache_indices: Tensor | None = None,
    initial_state_mode: Tensor | None = None,
    bias: Tensor | None = None,
    num_accepted_tokens: Tensor | None = None,
    activation: str | None = "None",
    pad_slot_id: int | None = -1,
    run_mode: int | None = 0,
    residual_connection: int | None = 0,
    max_query_len: int | None = -1,
    num_computed_tokens: Tensor | None = None,
    block_idx_first_scheduled_token: Tensor | None = None,
    block_idx_last_scheduled_token: Tensor | None = None,
    initial_state_idx: Tensor | None = None,
    block_size: int | None = 128,
    conv_mode: str | None = "default",
) -> None:
    """Writes the result into the rows of y, which may be x, and the states into conv_states."""
    _check.rank("x", x, (2, 3), "[T, D] or [B, L, D]")
    _check.rank("conv_states", conv_states, (3,), "[lines, C, D]")
    _check.size(weight.shape[0] == WIDTH, "weight", f"of shape [K, D], K = {WIDTH}", weight)
    _check.size(conv_states.shape[1] >= WIDTH - 1, "conv_states", f"of C >= {WIDTH - 1}", conv_states)
    _check.value("conv_mode", conv_mode, (None, *_MODES))
    _check.value("residual_connection", residual_connection, (None, 0, 1))
    blocks = (block_idx_first_scheduled_token, block_idx_last_scheduled_token, initial_state_idx)
    by_blocks = block_idx_last_scheduled_token is not None
    if by_blocks and (cache_indices is None or num_computed_tokens is None or any(b is None for b in blocks)):
        _check.refuse(
            "block_idx_last_scheduled_token",
            "given with block_idx_first_scheduled_token, initial_state_idx, num_computed_tokens and cache_indices",
            "others that are None",
        )
    if conv_mode == "pangu" and num_computed_tokens is None:
        _check.refuse("num_computed_tokens", "given with conv_mode 'pangu'", None)
    lists: list[Any] = [
        None if t is None else t.tolist() for t in (cache_indices, num_accepted_tokens, num_computed_tokens, *blocks)
    ]
    indices, accepted, computed, firsts, lasts, initial = lists
    flat, out, size = x.reshape(-1, x.shape[-1]), y.view(-1, x.shape[-1]), conv_states.shape[1]
    for number, rows in _sequences(x, query_start_loc):
        sequence = flat[rows]
        if by_blocks:
            read, write = indices[number][initial[number]], indices[number][lasts[number]]
        else:
            read = write = number if indices is None else indices[number]
        if read == pad_slot_id:
            continue
        if computed is not None and computed[number] == 0:
            offset, past = 0, torch.zeros((WIDTH - 1, x.shape[-1]), dtype=x.dtype)
        else:
            offset = size - (WIDTH - 1) if accepted is None else accepted[number] - 1
            if not 0 <= offset <= size - (WIDTH - 1):
                _check.refuse("num_accepted_tokens", f"from 1 to {size - WIDTH + 2}, as conv_states has room", accepted)
            past = conv_states[read, : offset + WIDTH - 1]
        padded = torch.cat([past, sequence])
        kept = min(size, len(padded))
        conv_states[write, size - kept :] = padded[len(padded) - kept :]
        padded = padded[offset:]
        if by_blocks:
            _fill(
                conv_states, indices[number], padded, computed[number], block_size or 128, firsts[number], lasts[number]
            )
        if not len(sequence):
            continue
        result = (padded.float().unfold(0, WIDTH, 1) * weight.float().t()).sum(-1)
        if conv_mode == "pangu":
            result[: min(max(WIDTH - 1 - computed[number], 0), len(sequence))] = 0
        out[rows] = (result + sequence.float() if residual_connection else result).to(x.dtype)


def _fill(
    conv_states: Tensor, lines: list[int], padded: Tensor, computed: int, block: int, first: int, last: int
) -> None:
    """Prefix caching: the lines of the blocks that this sequence completes."""
    length = len(padded) - (WIDTH - 1)
    rest = (length - (block - computed % block)) % block
    ends = length - rest - (block if rest == 0 else 0)
    for chunk in range(last - first):
        end = ends - (last - first - chunk - 1) * block
        conv_states[lines[first + chunk], conv_states.shape[1] - (WIDTH - 1) :] = padded[end : end + WIDTH - 1]


def fused_causal_conv1d(x: Tensor, weight: Tensor, conv_states: Tensor, **keywords: Any) -> Tensor:
    """y, of x's shape; conv_states is written to. Raises ValueError for arguments that do not fit each other."""
    y = torch.zeros(x.shape, dtype=x.dtype)
    _convolve(x, weight, conv_states, y, **keywords)
    return y


def fused_causal_conv1d_v2(x: Tensor, weight: Tensor, conv_states: Tensor, **keywords: Any) -> None:
    """Writes y into x; the rows of sequences that are left alone keep what they have."""
    _convolve(x, weight, conv_states, x, **keywords)


def _ge(function: Callable[..., Any], result: Callable[[Tensor, Tensor, Any], Any]) -> Callable[..., Any]:
    """A GE kernel of the two types, which have the same inputs and attributes; result(x, conv_states, what the function returns)."""

    def call(
        x: Tensor,
        weight: Tensor,
        conv_states: Tensor,
        query_start_loc: Tensor | None = None,
        cache_indices: Tensor | None = None,
        initial_state_mode: Tensor | None = None,
        bias: Tensor | None = None,
        num_accepted_tokens: Tensor | None = None,
        num_computed_tokens: Tensor | None = None,
        block_idx_first_scheduled_token: Tensor | None = None,
        block_idx_last_scheduled_token: Tensor | None = None,
        initial_state_idx: Tensor | None = None,
        *,
        activation_mode: int = 0,
        pad_slot_id: int = -1,
        run_mode: int = 0,
        max_query_len: int = -1,
        residual_connection: int = 1,
        block_size: int = 128,
        conv_mode: int = 0,
    ) -> Any:
        returned = function(
            x,
            weight,
            conv_states,
            query_start_loc=query_start_loc,
            cache_indices=cache_indices,
            num_accepted_tokens=num_accepted_tokens,
            num_computed_tokens=num_computed_tokens,
            block_idx_first_scheduled_token=block_idx_first_scheduled_token,
            block_idx_last_scheduled_token=block_idx_last_scheduled_token,
            initial_state_idx=initial_state_idx,
            pad_slot_id=pad_slot_id,
            residual_connection=residual_connection,
            block_size=block_size,
            conv_mode=_MODES[conv_mode],
        )
        return result(x, conv_states, returned)

    return call


OPERATOR = of_torch_npu(
    "npu_fused_causal_conv1d",
    fused_causal_conv1d,
    ge=[
        GeKernel(
            "FusedCausalConv1d",
            _ge(fused_causal_conv1d, lambda x, states, y: (states, y)),
            assigns=("conv_states",),
        )
    ],
)
V2_OPERATOR = of_torch_npu(
    "npu_fused_causal_conv1d_v2",
    fused_causal_conv1d_v2,
    ge=[
        GeKernel(
            "InplaceFusedCausalConv1d",
            _ge(fused_causal_conv1d_v2, lambda x, states, _: (states, x)),
            assigns=("x", "conv_states"),
        )
    ],
)
