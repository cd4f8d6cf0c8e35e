"""`npu_dynamic_quant_asymmetric(x, ...)`: int8 or int4 tokens, with the scales and offsets that were computed from them.

    x [..., H] float16, bfloat16 -> y [..., H] int8, or int4 packed in int32 [..., H / 8]   scale, offset float32, shaped as
    npu_dynamic_quant's scale

    scale = (max x - min x) / (MAX - MIN), at least 1e-12     offset = MAX - max x / scale     y = round(x / scale + offset)

    MIN and MAX are the limits of the type, -128 and 127 or -8 and 7; halves are rounded to even. The other arguments are those of
    npu_dynamic_quant.

Sources: the operator's page in the torch_npu documentation; the document of aclnnDynamicQuantV4; ops-nn's kernel (dynamic_quant) for the
least scale, which values that are all the same get. Not served: the output types of Ascend 950, and with them dst_type_max.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import destination, int4
from moe_graph.operators.quantization.dynamic_quant import (
    PER_CHANNEL,
    PER_TOKEN,
    check_arguments,
    dynamic_quant,
    factors,
)
from moe_graph.operators.quantization.int8 import INT8_MAX, INT8_MIN, only_int8

_check = Checks("npu_dynamic_quant_asymmetric")
LEAST_SCALE = 1e-12


def asymmetric(
    x: Tensor, smooth_scales: Tensor | None, group_index: Tensor | None, quant_mode: str, maximum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers up to `maximum` as float32, scale and offset."""
    values = x.float()
    if smooth_scales is not None:
        values = values * factors(_check, values, smooth_scales.float(), group_index, quant_mode)
    dims = {PER_TOKEN: (-1,), PER_CHANNEL: (-2,)}.get(quant_mode, tuple(range(values.dim())))
    if values.numel() == 0:
        raise ValueError(f"npu_dynamic_quant_asymmetric: input must have elements, got shape {tuple(x.shape)}")
    largest = values.amax(dims, keepdim=True)
    scale = ((largest - values.amin(dims, keepdim=True)) / (2 * maximum + 1)).clamp_min(LEAST_SCALE)
    offset = maximum - largest / scale
    y = (values / scale + offset).round().clamp(-maximum - 1, maximum)
    kept = (
        (1,) if len(dims) == values.dim() and quant_mode not in (PER_TOKEN, PER_CHANNEL) else scale.squeeze(dims).shape
    )
    return y, scale.reshape(kept), offset.reshape(kept)


def dynamic_quant_asymmetric(
    x: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = PER_TOKEN,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, scale and offset. Raises as npu_dynamic_quant does."""
    maximum = destination.largest("npu_dynamic_quant_asymmetric: dst_type", dst_type)
    check_arguments(_check, x, smooth_scales, group_index, None, quant_mode, dst_type_max)
    y, scale, offset = asymmetric(x, smooth_scales, group_index, quant_mode, maximum)
    return destination.rounded(y, maximum), scale, offset


def _ge_dynamic_quant_v2(
    x: Tensor,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    *,
    dst_type: GeType = 2,  # type: ignore[assignment]
    is_symmetrical: bool = False,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE DynamicQuantV2. The third output of the symmetric form, the offset, is 0 and read by nobody."""
    if is_symmetrical:
        only_int8(dst_type)
        y, scale = dynamic_quant(
            x, smooth_scales=smooth_scales, group_index=group_index, quant_mode=quant_mode, dst_type_max=dst_type_max
        )
        return y, scale, torch.zeros_like(scale)
    check_arguments(_check, x, smooth_scales, group_index, None, quant_mode, dst_type_max)
    is_int4 = dst_type.name == "DT_INT4"
    if not is_int4:
        only_int8(dst_type)
    whole, scale, offset = asymmetric(x, smooth_scales, group_index, quant_mode, int4.INT4_MAX if is_int4 else INT8_MAX)
    y = int4.carried(whole) if is_int4 else whole.clamp(INT8_MIN, INT8_MAX).to(torch.int8)
    return y, scale, offset


OPERATOR = of_torch_npu(
    "npu_dynamic_quant_asymmetric",
    dynamic_quant_asymmetric,
    ge=[GeKernel("DynamicQuantV2", _ge_dynamic_quant_v2)],
)
