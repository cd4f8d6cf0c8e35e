"""`npu_dynamic_mx_quant_with_dual_axis(input, *, round_mode, dst_type, scale_alg, dst_type_max)`: block quantization along both last axes.

    input [..., M, N] float16, bfloat16, of 2 to 7 dimensions -> (y1, mxscale1, y2, mxscale2), all of input quantised twice
    y1, mxscale1    as npu_dynamic_mx_quant along axis -1     mxscale1 [..., M, ceil(N / 64), 2]
    y2, mxscale2    as npu_dynamic_mx_quant along axis -2     mxscale2 [..., ceil(M / 64), N, 2]

Modes are those of `dynamic_mx_quant`; blocks have 32 values. Only Ascend 950 has it. Sources: the documents of
aclnnDynamicMxQuantWithDualAxis and V2 (ops-nn, quant/dynamic_mx_quant_with_dual_axis), torch_npu's fake implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import mx
from moe_graph.operators.quantization.dynamic_mx_quant import check_modes

_check = Checks("npu_dynamic_mx_quant_with_dual_axis")


def _computed(
    x: Tensor, form: mx.Format, round_mode: str, scale_alg: int, dst_type_max: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Elements, one each, and mxscale as uint8, of either axis."""
    mx.only_on_950("npu_dynamic_mx_quant_with_dual_axis")
    _check.dtype("input", x, (torch.float16, torch.bfloat16))
    _check.rank("input", x, range(2, 8), "of 2 to 7 dimensions")
    check_modes(_check, form, round_mode, scale_alg, dst_type_max)
    first, codes1 = mx.quantized(x.float(), -1, form, round_mode, scale_alg, dst_type_max)
    second, codes2 = mx.quantized(x.float(), -2, form, round_mode, scale_alg, dst_type_max)
    return first, mx.in_pairs(codes1, -1), second, mx.in_pairs(codes2, -2)


def dynamic_mx_quant_with_dual_axis(
    x: Tensor,
    *,
    round_mode: str = "rint",
    dst_type: int = 296,
    scale_alg: int = 0,
    dst_type_max: float | None = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y1, mxscale1, y2, mxscale2, as the module's document says. Raises ValueError for what it excludes."""
    form = mx.of_number("npu_dynamic_mx_quant_with_dual_axis: dst_type", dst_type)
    first, scale1, second, scale2 = _computed(x, form, round_mode, scale_alg, dst_type_max or 0.0)
    return mx.stored(first, form), scale1, mx.stored(second, form), scale2


def _ge_dynamic_mx_quant_with_dual_axis(
    x: Tensor,
    *,
    round_mode: str = "rint",
    dst_type: GeType = 40,  # type: ignore[assignment]
    scale_alg: int = 0,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GE DynamicMxQuantWithDualAxis."""
    form = mx.of_ge("DynamicMxQuantWithDualAxis: dst_type", dst_type)
    first, scale1, second, scale2 = _computed(x, form, round_mode, scale_alg, dst_type_max)
    return first, mx.as_e8m0(scale1), second, mx.as_e8m0(scale2)


OPERATOR = of_torch_npu(
    "npu_dynamic_mx_quant_with_dual_axis",
    dynamic_mx_quant_with_dual_axis,
    ge=[GeKernel("DynamicMxQuantWithDualAxis", _ge_dynamic_mx_quant_with_dual_axis)],
)
