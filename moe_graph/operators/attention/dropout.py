"""`_npu_dropout_gen_mask(self, size, p, seed, offset)`: which of so many elements dropout keeps, and what attention makes of it.

    -> uint8, a bit for each element, the lowest first, 1 where it is kept with probability 1 - p; padded to a multiple of 128 bits

Seed and offset decide the bits, as on the device; they are other bits than the device's, like all random numbers of the simulated one.

Source: op-plugin's FlashAttentionKernelNpuOpApi.cpp (length) and test_npu_flash_attention.py (order of bits, what becomes of them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu

_PADDED = 128


def kept(count: int, keep_prob: float, seed: int, offset: int) -> Tensor:
    """Which of `count` elements are kept, boolean."""
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + offset) & (2**63 - 1))
    return torch.rand(count, generator=generator) < keep_prob


def packed(bits: Tensor) -> Tensor:
    """The bits of booleans, eight in a byte, padded with 0."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % _PADDED)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(-1).to(torch.uint8)


def unpacked(mask: Tensor, count: int) -> Tensor:
    """The first `count` bits, boolean."""
    return ((mask.flatten().unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:count].bool()


def dropout_gen_mask(
    x: Tensor,
    size: Sequence[int],
    p: float,
    seed: int,
    offset: int,
    *,
    parallel: bool | None = True,
    sync: bool | None = None,
) -> Tensor:
    """The packed bits, as the module's document says."""
    return packed(kept(math.prod(size), 1 - p, seed, offset))


OPERATOR = of_torch_npu("_npu_dropout_gen_mask.Tensor", dropout_gen_mask)
