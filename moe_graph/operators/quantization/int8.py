"""Symmetric int8 quantization with a scale computed from the values, as several operators of the family have it.

    scale = max |v| / 127      y = round(v / scale), halves to even      dequantized: y * scale

Values and scales are float32. Where all values are 0 the scale and y are 0 (the formula divides 0 by 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

from moe_graph.foundation import settings, transforms
from moe_graph.operators.checks import Checks
from moe_graph.operators.ge import GeType

INT8_MAX = 127
INT8_MIN = -128


def to_int8(values: Tensor) -> Tensor:
    """float32 values rounded, halves to even, and cut to int8."""
    return values.round().clamp(INT8_MIN, INT8_MAX).to(torch.int8)


def dynamic_int8(values: Tensor, dims: int | Sequence[int] = -1) -> tuple[Tensor, Tensor]:
    """float32 values -> int8 y of their shape, and float32 scales, one for the values along `dims`, which keep size 1."""
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    shape = list(values.shape)
    for dim in dims:
        shape[dim] = 1
    if values.numel() == 0:
        return values.to(torch.int8), values.new_zeros(shape)
    scale = values.abs().amax(dims, keepdim=True) / INT8_MAX
    return to_int8(values / scale.masked_fill(scale == 0, 1)), scale


def group_of_rows(ends: Tensor, rows: int) -> Tensor:
    """The group [rows] of each row, groups being given by the running sum [G] of their sizes; rows of no group get G."""
    return torch.searchsorted(ends, torch.arange(rows, device=ends.device, dtype=ends.dtype), right=True)


def is_running_sum(ends: Tensor) -> Tensor:
    """The truth value of: `ends` [G] is a running sum of the sizes of groups, of which none is below 0."""
    return (ends.diff(prepend=ends.new_zeros(1)) >= 0).all()


def check_values(check: Checks, argument: str, values: Tensor, valid: Tensor, allowed: str) -> None:
    """Raise ValueError unless the one truth value `valid` holds; where `moe_graph.foundation.settings.checks_values` says so.

    While torch.compile traces, as it does a recorded gradient, it becomes an assertion in the graph, a RuntimeError.
    """
    if not settings.checks_values(values):
        return
    valid = transforms.plain(valid).all()
    if detect_fake_mode([valid]) is not None:  # traced by torch.compile: looked at when it runs
        torch._assert_async(valid, check.message(argument, allowed, "other values"))
    elif not bool(valid):
        check.refuse(argument, allowed, transforms.plain(values).tolist())


def only_int8(dst_type: GeType) -> None:
    """Raise ValueError unless a GE attribute asks for int8."""
    if dst_type.name != "DT_INT8":
        raise ValueError(f"dst_type must be DT_INT8 (no other type has a fallback), got {dst_type.name}")
