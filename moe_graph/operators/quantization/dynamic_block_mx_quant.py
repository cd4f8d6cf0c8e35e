"""`npu_dynamic_block_mx_quant(input, *, round_mode, dst_type, scale_alg, dst_type_max)`: a scale for each 32 x 32 values.

    input [M, N] or [B, M, N] float16, bfloat16 -> (y, scale1, scale2)
    y       like input, of dst_type: x / scale of its square
    scale1  [..., M, ceil(N / 64), 2]: each row has the scales of its squares   scale2 [..., ceil(M / 64), N, 2]: each column

Types of elements, layouts and scale_alg are those of `mx`: 0, and 2 for float4_e2m1 with dst_type_max 0, 6 or 7. Only Ascend 950 has it.
Sources: the document of aclnnDynamicBlockMxQuant (ops-nn, quant/dynamic_block_mx_quant), the reference function beside the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import mx
from moe_graph.operators.quantization.dynamic_mx_quant import check_modes

_check = Checks("npu_dynamic_block_mx_quant")


def _computed(
    x: Tensor, form: mx.Format, round_mode: str, scale_alg: int, dst_type_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Elements, one each, scale1 and scale2 as uint8."""
    mx.only_on_950("npu_dynamic_block_mx_quant")
    _check.dtype("input", x, (torch.float16, torch.bfloat16))
    _check.rank("input", x, (2, 3), "[M, N] or [B, M, N]")
    check_modes(_check, form, round_mode, scale_alg, dst_type_max)
    _check.value("scale_alg", scale_alg, (0, 2))
    _check.value("dst_type_max", dst_type_max, (0.0, 6.0, 7.0))
    rows, columns = x.shape[-2:]
    squares = mx.blocks(mx.blocks(x.float(), -1), x.dim() - 2)  # [..., m, 32, n, 32]
    codes = mx.scale_codes(squares.abs().amax((-3, -1)), form, scale_alg, dst_type_max)
    of_rows = codes.repeat_interleave(mx.BLOCK, -2)[..., :rows, :]
    of_columns = codes.repeat_interleave(mx.BLOCK, -1)[..., :columns]
    scale = mx.power(of_rows.repeat_interleave(mx.BLOCK, -1)[..., :columns])
    elements = mx.encoded((x.double() / scale).float(), form, round_mode)
    return elements, mx.in_pairs(of_rows, -1), mx.in_pairs(of_columns, -2)


def dynamic_block_mx_quant(
    x: Tensor, *, round_mode: str = "rint", dst_type: int = 296, scale_alg: int = 0, dst_type_max: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """y, scale1, scale2, as the module's document says. Raises ValueError for what it excludes."""
    form = mx.of_number("npu_dynamic_block_mx_quant: dst_type", dst_type)
    elements, scale1, scale2 = _computed(x, form, round_mode, scale_alg, dst_type_max)
    return mx.stored(elements, form), scale1, scale2


def _ge_dynamic_block_mx_quant(
    x: Tensor,
    *,
    round_mode: str = "rint",
    dst_type: GeType = 40,  # type: ignore[assignment]
    scale_alg: int = 0,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE DynamicBlockMxQuant."""
    form = mx.of_ge("DynamicBlockMxQuant: dst_type", dst_type)
    elements, scale1, scale2 = _computed(x, form, round_mode, scale_alg, dst_type_max)
    return elements, mx.as_e8m0(scale1), mx.as_e8m0(scale2)


OPERATOR = of_torch_npu(
    "npu_dynamic_block_mx_quant",
    dynamic_block_mx_quant,
    ge=[GeKernel("DynamicBlockMxQuant", _ge_dynamic_block_mx_quant)],
)
