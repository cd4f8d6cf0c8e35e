"""`npu_quant_max(x, scale, *, round_mode, dst_dtype, group_list)`: x * scale as float8, and the largest magnitude of x.

    x [M, ...] float32, float16, bfloat16   scale float32 [1] -> y like x, amax [1] of x's dtype: max |x|
    group_list      [G] int64: where groups of x along its first dimension end, M at last; scale and amax are [G] then (G > 1)
    dst_dtype       float8_e5m2 (default), float8_e4m3fn: round_mode "rint"; hifloat8, as uint8: "round" (halves away from zero)

Only Ascend 950 has it. Sources: the documents of aclnnQuantMax and aclnnGroupedQuantMax (ops-nn, quant), torch_npu's adapter. Too large
values are cut to the type's largest, NaN becomes 0, as in the reference function beside the kernel; groups of no row have amax 0. In a
graph GE QuantMax or GroupedQuantMax. Not served: round_mode "hybrid", which is random on a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType, renamed
from moe_graph.operators.quantization import destination, hifloat8, mx
from moe_graph.operators.quantization.int8 import INT8_MAX, check_values, group_of_rows, is_running_sum

_check = Checks("npu_quant_max")


def _computed(
    x: Tensor, scale: Tensor, group_list: Tensor | None, round_mode: str, maximum: float
) -> tuple[Tensor, Tensor]:
    mx.only_on_950("npu_quant_max")
    _check.dtype("x", x, (torch.float32, torch.float16, torch.bfloat16))
    if maximum <= INT8_MAX:
        _check.refuse("dst_dtype", "float8_e5m2, float8_e4m3fn or hifloat8", "an integer type")
    if round_mode == "hybrid" and maximum == hifloat8.MAXIMUM:
        raise NotImplementedError(
            "npu_quant_max: round_mode must be 'round', 'hybrid' is random on a device and not served"
        )
    _check.value("round_mode", round_mode, ("round",) if maximum == hifloat8.MAXIMUM else ("rint",))
    groups = 1 if group_list is None else group_list.shape[0]
    _check.dtype("scale", scale, (torch.float32,))
    _check.size(list(scale.shape) == [groups], "scale", f"of shape [{groups}]", scale)
    if group_list is None or groups <= 1:
        amax = x.abs().amax().reshape(1) if x.numel() else x.new_zeros(1)
        return destination.rounded(x.float() * scale, maximum), amax
    rows = x.shape[0]
    valid = is_running_sum(group_list) & (group_list[-1] == rows)
    check_values(_check, "group_list", group_list, valid, f"non-decreasing and end with the {rows} rows")
    group = group_of_rows(group_list, rows).clamp_max(groups - 1)
    factors = scale[group].view(rows, *[1] * (x.dim() - 1))
    of_rows = x.abs().reshape(rows, -1).amax(1) if x.numel() else x.new_zeros(rows)
    amax = x.new_zeros(groups).scatter_reduce(0, group, of_rows, "amax")
    return destination.rounded(x.float() * factors, maximum), amax


def quant_max(
    x: Tensor, scale: Tensor, *, round_mode: str = "rint", dst_dtype: int = 291, group_list: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y and amax, as the module's document says. Raises ValueError for what it excludes."""
    maximum = destination.largest("npu_quant_max: dst_dtype", dst_dtype, float8=True)
    return _computed(x, scale, group_list, round_mode, maximum)


def _ge_quant_max(
    x: Tensor,
    scale: Tensor,
    group_list: Tensor | None = None,
    *,
    round_mode: str = "rint",
    dst_type: GeType = 35,  # type: ignore[assignment]
) -> tuple[Tensor, Tensor]:
    """GE QuantMax and, with group_list, GroupedQuantMax."""
    return _computed(x, scale, group_list, round_mode, destination.largest_of_ge("QuantMax: dst_type", dst_type))


OPERATOR = of_torch_npu(
    "npu_quant_max",
    quant_max,
    ge=[
        GeKernel("QuantMax", renamed(_ge_quant_max, without=("group_list",))),
        GeKernel("GroupedQuantMax", _ge_quant_max),
    ],
)
