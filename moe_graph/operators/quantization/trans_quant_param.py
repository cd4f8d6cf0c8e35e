"""`npu_trans_quant_param(scale, offset=None, round_mode=0)`: float32 scales, and offsets, packed into the int64 that products take.

    scale [t] or [1, n] float32   offset the same   -> int64 of that shape
    bits 0 to 31   the scale, of which the 19 high bits are kept: cut off (round_mode 0), or rounded to them (1)
    bits 37 to 45  round(offset), from -256 to 255      bit 46  set

Source: the documents of aclnnTransQuantParamV2 and V3 (ops-nn, quant/trans_quant_param_v2). Halves of the offset are rounded to even.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed

_CUT = 13  # low bits of a float32 that are not kept


def trans_quant_param(scale: Tensor, offset: Tensor | None = None, round_mode: int | None = 0) -> Tensor:
    """The packed parameters."""
    if round_mode not in (None, 0, 1):
        raise ValueError(f"round_mode must be 0 or 1, got {round_mode}")
    bits = scale.float().contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    if round_mode == 1:  # to the nearest, halves to even
        bits = bits + (1 << (_CUT - 1)) - 1 + ((bits >> _CUT) & 1)
    packed = (bits & 0xFFFFE000) | (1 << 46)
    if offset is not None:
        whole = offset.float().round().clamp(-256, 255).to(torch.int64) & 0x1FF
        packed = packed | (whole << 37)
    return packed


def unpacked(scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """(float32 scales, their offsets) of packed int64 or uint64; scales of another dtype as float32, without offsets."""
    if scale.dtype not in (torch.int64, torch.uint64):
        return scale.float(), None
    words = scale.contiguous().view(torch.int64)
    low = (words & 0xFFFFFFFF).to(torch.uint32).view(torch.float32)
    offset = (words >> 37) & 0x1FF
    return low, torch.where(offset > 255, offset - 512, offset).float()


OPERATOR = of_torch_npu(
    "npu_trans_quant_param", trans_quant_param, ge=[GeKernel("TransQuantParamV2", renamed(trans_quant_param))]
)
