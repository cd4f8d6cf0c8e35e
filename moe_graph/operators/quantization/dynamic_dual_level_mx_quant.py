"""`npu_dynamic_dual_level_mx_quant(input, *, smooth_scale, round_mode)`: float4 with a scale for 512 values and one for each 32 of them.

    input [..., H] float16, bfloat16, H even, of 1 to 7 dimensions   smooth_scale [H] like input, multiplied in first
    -> y uint8 [..., H / 2], level0_scale float32 [..., ceil(H / 512)], level1_scale uint8 [..., ceil(H / 64), 2]

    level0_scale = max |x| of 512 values / 6     t = x / level0_scale, in the input's type     y, level1_scale: float4_e2m1 of t

y and level1_scale lie as `mx` says. Values that are all 0 have level0_scale 0 and, here, t = 0 (the formula divides 0 by 0). Only Ascend
950 has it. Sources: the document of aclnnDynamicDualLevelMxQuant (ops-nn, quant/dynamic_dual_level_mx_quant), torch_npu's fake.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.quantization import mx

_check = Checks("npu_dynamic_dual_level_mx_quant")
LEVEL0 = 512


def _computed(x: Tensor, smooth_scale: Tensor | None, round_mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Elements, one each, and both scales."""
    mx.only_on_950("npu_dynamic_dual_level_mx_quant")
    _check.dtype("input", x, (torch.float16, torch.bfloat16))
    _check.rank("input", x, range(1, 8), "of 1 to 7 dimensions")
    _check.size(x.shape[-1] % 2 == 0, "input", "of an even last size", x)
    _check.value("round_mode", round_mode, ("rint", "round", "floor"))
    values = x.float()
    if smooth_scale is not None:
        _check.dtype("smooth_scale", smooth_scale, (x.dtype,))
        _check.rank("smooth_scale", smooth_scale, (1,), "[H]")
        _check.size(smooth_scale.shape[0] == x.shape[-1], "smooth_scale", f"of H = {x.shape[-1]}", smooth_scale)
        values = (values * smooth_scale.float()).to(x.dtype).float()
    parts = mx.blocks(values, -1, LEVEL0)
    level0 = parts.abs().amax(-1) / mx.E2M1.maximum
    between = (parts / level0.masked_fill(level0 == 0, 1).unsqueeze(-1)).to(x.dtype).float()
    between = between.flatten(-2)[..., : x.shape[-1]]
    elements, codes = mx.quantized(between, -1, mx.E2M1, round_mode)
    return elements, level0, mx.in_pairs(codes, -1)


def dynamic_dual_level_mx_quant(
    x: Tensor, *, smooth_scale: Tensor | None = None, round_mode: str = "rint"
) -> tuple[Tensor, Tensor, Tensor]:
    """y, level0_scale, level1_scale, as the module's document says. Raises ValueError for what it excludes."""
    elements, level0, level1 = _computed(x, smooth_scale, round_mode)
    return mx.stored(elements, mx.E2M1), level0, level1


def _ge_dynamic_dual_level_mx_quant(
    x: Tensor,
    smooth_scale: Tensor | None = None,
    *,
    round_mode: str = "rint",
    level0_block_size: int = 512,
    level1_block_size: int = 32,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE DynamicDualLevelMxQuant."""
    _check.value("level0_block_size", level0_block_size, (LEVEL0,))
    _check.value("level1_block_size", level1_block_size, (mx.BLOCK,))
    elements, level0, level1 = _computed(x, smooth_scale, round_mode)
    return elements, level0, mx.as_e8m0(level1)


OPERATOR = of_torch_npu(
    "npu_dynamic_dual_level_mx_quant",
    dynamic_dual_level_mx_quant,
    ge=[GeKernel("DynamicDualLevelMxQuant", _ge_dynamic_dual_level_mx_quant)],
)
