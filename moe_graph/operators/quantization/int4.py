"""Values of four bits, eight of them in an int32: how torch_npu hands int4 tensors over. Element i lies in the bits from 4 * (i % 8) on.

Float4, and int4 that was cast, lie two to a byte, the first in the low half.
"""

from __future__ import annotations

import torch
from torch import Tensor

PER_WORD = 8
INT4_MAX = 7
INT4_MIN = -8


def packed(values: Tensor) -> Tensor:
    """Whole numbers from -8 to 7 [..., K] -> int32 [..., K / 8]. Raises ValueError if 8 does not divide K."""
    if values.shape[-1] % PER_WORD:
        raise ValueError(f"the last dimension of int4 values must be a multiple of {PER_WORD}, got {values.shape[-1]}")
    words = values.to(torch.int64).unflatten(-1, (-1, PER_WORD)) & 0xF
    shifted = words << (4 * torch.arange(PER_WORD))
    return shifted.sum(-1).to(torch.int32)


def unpacked(words: Tensor) -> Tensor:
    """int32 [..., K / 8] -> int8 [..., K], from -8 to 7."""
    nibbles = (words.unsqueeze(-1).to(torch.int64) >> (4 * torch.arange(PER_WORD))) & 0xF
    return torch.where(nibbles > INT4_MAX, nibbles - 16, nibbles).flatten(-2).to(torch.int8)


def in_bytes(codes: Tensor) -> Tensor:
    """Codes of four bits, one in each uint8 [..., K] -> two to a byte [..., K / 2]. Raises ValueError if K is odd."""
    if codes.shape[-1] % 2:
        raise ValueError(f"the last dimension of a half-byte type must be even to pack, got shape {tuple(codes.shape)}")
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def of_bytes(x: Tensor) -> Tensor:
    """What `in_bytes` made, one code in each uint8 again."""
    return torch.stack((x & 0xF, x >> 4), -1).flatten(-2)


def carried(values: Tensor) -> Tensor:
    """Whole numbers from -8 to 7 as the host engine carries GE's DT_INT4: one element in the low half of each uint8."""
    return values.to(torch.int8).view(torch.uint8) & 0xF


def of_carrier(x: Tensor) -> Tensor:
    """What `carried` made, as int8 from -8 to 7; a tensor of another dtype, which is not int4, as it is."""
    if x.dtype != torch.uint8:
        return x
    nibbles = x.to(torch.int8)
    return torch.where(nibbles > INT4_MAX, nibbles - 16, nibbles)
