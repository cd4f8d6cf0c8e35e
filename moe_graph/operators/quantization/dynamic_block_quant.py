"""`npu_dynamic_block_quant(x, *, min_scale, round_mode, dst_type, row_block_size, col_block_size, dst_type_max)`: a scale for each block.

    x [M, N] or [B, M, N] float16, bfloat16 (Ascend 950: float32) -> y like x, scale float32 [..., ceil(M / rows), ceil(N / columns)]
    scale = min(max |x| of the block / the type's largest value, 1 / min_scale)     y = round(x / scale)

    dst_type        int8 with blocks of 1 x 128, the default; on Ascend 950 also float8_e5m2, float8_e4m3fn, hifloat8 (as uint8), and
                    blocks of 1, 128, 256, 512 rows and 64, 128, 192, 256 columns
    dst_type_max    of hifloat8: 15, 56, 224 or 32768 takes the place of the largest value; 0 leaves it
    round_mode      "rint": halves to even; "round" (Ascend 950): away from zero, which hifloat8 always does

Sources: the operator's page in the torch_npu documentation; the documents of aclnnDynamicBlockQuant and V2 (ops-nn,
quant/dynamic_block_quant) and the reference function beside the kernel: the page has the quotient of scale upside down, its sample not.
Infinity and NaN do not count for the scale; they become the largest value and 0. Blocks of zeros have scale 0 and y 0. In a graph torchair
has no int8. Not served: round_mode "hybrid".
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.foundation import product
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import destination, hifloat8, int4, mx
from moe_graph.operators.quantization.int8 import INT8_MAX

_check = Checks("npu_dynamic_block_quant")
ROWS, COLUMNS = (1, 128, 256, 512), (64, 128, 192, 256)


def scales(largest: Tensor, maximum: float, dst_type_max: float, min_scale: float) -> Tensor:
    """The scales of blocks with these largest magnitudes."""
    scale = largest / (dst_type_max or maximum)
    return scale.clamp_max(1 / min_scale) if min_scale else scale


def finite_magnitudes(x: Tensor) -> Tensor:
    """|x|, float32, with 0 for infinity and NaN, which do not count for a scale."""
    return x.float().abs().masked_fill(~x.isfinite(), 0)


def divided(x: Tensor, scale: Tensor, maximum: float, round_mode: str) -> Tensor:
    """x / scale in the type whose largest value this is; scale is of x's shape."""
    values = (x.float() / scale).masked_fill(scale == 0, 0)
    values = torch.where(x.isfinite(), values, x.float())
    if round_mode == "round" and maximum == INT8_MAX:
        values = values.sign() * (values.abs() + 0.5).floor()
    if round_mode == "round" and maximum not in (INT8_MAX, hifloat8.MAXIMUM):
        raise NotImplementedError("round_mode must be 'rint' with float8_e5m2 and float8_e4m3fn, 'round' is not served")
    return destination.rounded(values, maximum)


def check_maximum(check: Checks, maximum: float, dst_type_max: float, min_scale: float, round_mode: str) -> None:
    """Raise for modes that this type lacks."""
    if maximum == int4.INT4_MAX:
        check.refuse("dst_type", "int8, float8_e5m2, float8_e4m3fn or hifloat8", "int4")
    check.value(
        "dst_type_max", dst_type_max, (0.0, 15.0, 56.0, 224.0, 32768.0) if maximum == hifloat8.MAXIMUM else (0.0,)
    )
    if min_scale < 0:
        check.refuse("min_scale", "at least 0", min_scale)
    if round_mode == "hybrid":
        raise NotImplementedError("round_mode must be 'rint' or 'round', 'hybrid' is random on a device and not served")
    check.value("round_mode", round_mode, ("rint", "round"))


def _computed(
    x: Tensor,
    min_scale: float,
    round_mode: str,
    maximum: float,
    row_block_size: int,
    col_block_size: int,
    dst_type_max: float,
) -> tuple[Tensor, Tensor]:
    on_950 = product.current_product().name == "950"
    _check.dtype("x", x, (torch.float16, torch.bfloat16, *([torch.float32] if on_950 else [])))
    _check.rank("x", x, (2, 3), "[M, N] or [B, M, N]")
    check_maximum(_check, maximum, dst_type_max, min_scale, round_mode)
    _check.value("row_block_size", row_block_size, ROWS if on_950 else (1,))
    _check.value("col_block_size", col_block_size, COLUMNS if on_950 else (128,))
    _check.value("round_mode", round_mode, ("rint", "round") if on_950 else ("rint",))
    parts = mx.blocks(mx.blocks(finite_magnitudes(x), -1, col_block_size), x.dim() - 2, row_block_size)
    scale = scales(parts.amax((-3, -1)), maximum, dst_type_max, min_scale)
    of_values = scale.repeat_interleave(row_block_size, -2).repeat_interleave(col_block_size, -1)
    return divided(x, of_values[..., : x.shape[-2], : x.shape[-1]], maximum, round_mode), scale


def dynamic_block_quant(
    x: Tensor,
    *,
    min_scale: float = 0.0,
    round_mode: str = "rint",
    dst_type: int = 1,
    row_block_size: int = 1,
    col_block_size: int = 128,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """y and scale, as the module's document says. Raises ValueError for what it excludes."""
    maximum = destination.largest("npu_dynamic_block_quant: dst_type", dst_type, float8=True)
    return _computed(x, min_scale, round_mode, maximum, row_block_size, col_block_size, dst_type_max)


def _ge_dynamic_block_quant(
    x: Tensor,
    *,
    min_scale: float = 0.0,
    round_mode: str = "rint",
    dst_type: GeType = 34,  # type: ignore[assignment]
    row_block_size: int = 1,
    col_block_size: int = 128,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """GE DynamicBlockQuant."""
    maximum = destination.largest_of_ge("DynamicBlockQuant: dst_type", dst_type)
    return _computed(x, min_scale, round_mode, maximum, row_block_size, col_block_size, dst_type_max)


OPERATOR = of_torch_npu(
    "npu_dynamic_block_quant", dynamic_block_quant, ge=[GeKernel("DynamicBlockQuant", _ge_dynamic_block_quant)]
)
