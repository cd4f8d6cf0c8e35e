"""Rotary position embeddings: the ways to pair the elements of the last dimension, float32 inside.

    half             (x1, x2) -> (-x2, x1), the halves of the last dimension
    interleave       each pair (even, odd) -> (-odd, even)
    quarter          (x1, x2, x3, x4) -> (-x2, x1, -x4, x3), the quarters
    interleave-half  even elements first, odd ones behind them, then half

Source: the document of RotaryPositionEmbedding (ops-transformer, posembedding/rotary_position_embedding).
"""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("half", "interleave", "quarter", "interleave-half")
"""By their numbers in GE's attribute `mode`."""


def deinterleaved(x: Tensor) -> Tensor:
    """The even elements of the last dimension, and behind them the odd ones."""
    return torch.cat([x[..., ::2], x[..., 1::2]], -1)


def rotated(x: Tensor, mode: str) -> Tensor:
    """The partner of each element, signed. x [..., D] -> [..., D]"""
    if mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)
    if mode == "interleave":
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    if mode == "quarter":
        first, second, third, fourth = x.chunk(4, -1)
        return torch.cat([-second, first, -fourth, third], -1)
    raise ValueError(f"rotary_mode must be one of {', '.join(MODES)}, got {mode!r}")


def turned(x: Tensor, cos: Tensor, sin: Tensor, mode: str = "half") -> Tensor:
    """x * cos + partner of x * sin, in float32. x [..., D], cos and sin broadcast to it."""
    wide = x.float()
    if mode == "interleave-half":
        wide, mode = deinterleaved(wide), "half"
    return wide * cos.float() + rotated(wide, mode) * sin.float()
