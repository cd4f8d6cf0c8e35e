"""Quantised keys and values of attention, and its quantised output.

    int8 or int4 elements (eight int4 in an int32, the lowest bits first): x = (element + offset) * scale. Modes, with the scale's shape:
    0 per channel [N, D], [N, 1, D], [H], each with leading 1s, or per tensor [1]     1 per token [B, S] or [1, B, S]
    2 per head [N]     3 per token and head [B, N, S]     4 per token of a page [blocks, block_size]
    5 per token and head of a page [blocks, N, block_size]

    output int8 = round(out * scale + offset), scale and offset per tensor [1] or per channel: N * D numbers, N first

Source: the pages of npu_fused_infer_attention_score and its _v2; offset before scale: the kernel of incre_flash_attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_graph.operators.attention.paged import Pages
from moe_graph.operators.checks import Checks
from moe_graph.operators.quantization.int8 import to_int8

PER_CHANNEL, PER_TOKEN, PER_HEAD, PER_TOKEN_HEAD, PAGED_TOKEN, PAGED_TOKEN_HEAD = range(6)


@dataclass(frozen=True)
class Quantization:
    """How keys or values are quantised: scale, offset, mode, and the argument's name for errors."""

    argument: str
    scale: Tensor
    offset: Tensor | None = None
    mode: int = PER_CHANNEL

    def dequantize(self, check: Checks, x: Tensor, pages: Pages | None) -> Tensor:
        """float32 of x [B, N, S, D]."""
        wide = x.float()
        if self.offset is not None:
            wide = wide + self._spread(check, self.offset, x, pages)
        return wide * self._spread(check, self.scale, x, pages)

    def _spread(self, check: Checks, given: Tensor, x: Tensor, pages: Pages | None) -> Tensor:
        """A scale or offset in a shape that broadcasts to x."""
        batch, heads, rows, width = x.shape
        check.value(f"the mode of {self.argument}", self.mode, range(6))
        shape, given = tuple(given.shape), given.float()
        if self.mode == PER_CHANNEL and given.numel() == 1:
            return given.reshape(1, 1, 1, 1)
        if self.mode == PER_CHANNEL and given.numel() == heads * width:
            return given.reshape(1, heads, 1, width)
        if self.mode == PER_HEAD and given.numel() == heads:
            return given.reshape(1, heads, 1, 1)
        if self.mode == PER_TOKEN and given.dim() >= 2 and given.shape[-2] == batch and given.shape[-1] >= rows:
            return given.reshape(batch, 1, -1, 1)[:, :, :rows]
        if self.mode == PER_TOKEN_HEAD and given.shape[-3:-1] == (batch, heads) and given.shape[-1] >= rows:
            return given.reshape(batch, heads, -1, 1)[:, :, :rows]
        if self.mode in (PAGED_TOKEN, PAGED_TOKEN_HEAD) and pages is not None:
            per_head = given.unsqueeze(1) if self.mode == PAGED_TOKEN else given
            if per_head.dim() == 3 and per_head.shape[1] in (1, heads) and per_head.shape[2] == pages.block_size:
                return pages.take(self.argument, per_head).transpose(1, 2).flatten(2)[..., :rows, None]
        check.refuse(
            self.argument,
            f"of a shape of its mode {self.mode} for {batch} sequences, {heads} heads, {rows} tokens of {width} elements",
            f"shape {shape}",
        )


@dataclass(frozen=True)
class Int8Products:
    """Queries, keys and values of int8: what the integer products are multiplied with, and the probabilities before their product."""

    scores: Tensor
    probabilities: Tensor
    output: Tensor


def unpack_int4(x: Tensor) -> Tensor:
    """Eight int4 of each int32, the lowest bits first: the last size grows eightfold, int8."""
    bits = x.unsqueeze(-1) >> torch.arange(0, 32, 4, dtype=torch.int32)
    return (((bits & 15) ^ 8) - 8).to(torch.int8).flatten(-2)


def quantize_output(check: Checks, argument: str, x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """int8 of the output x [B, N, S, D], float32."""
    _, heads, _, width = x.shape
    factors = []
    for name, given in ((argument, scale), (argument.replace("scale", "offset"), offset)):
        if given is not None and given.numel() not in (1, heads * width):
            check.refuse(name, f"of 1 or {heads * width} elements", f"shape {tuple(given.shape)}")
        if given is not None:
            factors.append(
                given.float().reshape(1, heads, 1, width) if given.numel() > 1 else given.float().reshape(1, 1, 1, 1)
            )
    scaled = x * factors[0] + factors[1] if len(factors) > 1 else x * factors[0]
    return to_int8(scaled)


def factor_of(scale: Tensor) -> Tensor:
    """A per-tensor factor, float32: given as such, or as the bits of a float32 in a 64-bit number."""
    if not scale.is_floating_point():
        return scale.view(torch.int64).to(torch.int32).view(torch.float32).reshape(())
    return scale.float().reshape(())
