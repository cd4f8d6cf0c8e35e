"""swiglu, or its gradient, quantised in blocks along both axes.

    npu_swiglu_mx_quant_with_dual_axis(x, *, group_index, activate_left, round_mode, scale_alg, dst_type)
        x [M, 2N] float16, bfloat16 -> v = silu(A) * B [M, N]
    _npu_swiglu_backward_mx_quant_with_dual_axis(x, y_grad, *, ...)
        x [M, 2N], y_grad [M, N] of x's dtype -> v = the gradient of x [M, 2N]

    (y1, mxscale1)  npu_dynamic_mx_quant of v along axis -1
    (y2, mxscale2)  along axis -2; with group_index [G] int64, where the groups' rows end, npu_grouped_dynamic_mx_quant of v

A is the left half of x if activate_left, else the right. scale_alg 1 (float8), or 0. What lies beyond the groups is quantised along axis -1
and 0 along axis -2 here. Only Ascend 950 has them; torchair has no converter. Sources: the documents of
aclnnSwigluMxQuantWithDualAxis and aclnnSwigluBackwardMxQuantWithDualAxis (ops-nn, quant), torch_npu's adapters. v is rounded to x's dtype
before it is quantised, as the kernels do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.activation.swiglu import gated
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.quantization import mx
from moe_graph.operators.quantization.dynamic_mx_quant import check_modes
from moe_graph.operators.quantization.grouped_dynamic_mx_quant import quantized_in_groups
from moe_graph.operators.quantization.int8 import check_values, is_running_sum

_FORWARD, _BACKWARD = "npu_swiglu_mx_quant_with_dual_axis", "_npu_swiglu_backward_mx_quant_with_dual_axis"


def _checked(name: str, x: Tensor, round_mode: str, scale_alg: int, dst_type: int, dst_type_max: float) -> mx.Format:
    mx.only_on_950(name)
    check = Checks(name)
    form = mx.of_number(f"{name}: dst_type", dst_type)
    check.dtype("x", x, (torch.float16, torch.bfloat16))
    check.rank("x", x, (2,), "[M, 2N]")
    check.size(x.shape[1] % 2 == 0, "x", "of an even last size", x)
    check.value("scale_alg", scale_alg, (0, 1))
    check_modes(check, form, round_mode, scale_alg, 0.0)
    check.value("dst_type_max", dst_type_max, (0.0,))
    return form


def _along_both(
    name: str, values: Tensor, group_index: Tensor | None, form: mx.Format, round_mode: str, scale_alg: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, codes = mx.quantized(values, -1, form, round_mode, scale_alg)
    if group_index is None:
        second, codes2 = mx.quantized(values, 0, form, round_mode, scale_alg)
        scale2 = mx.in_pairs(codes2, 0)
    else:
        check, ends, rows = Checks(name), group_index.long(), values.shape[0]
        check.rank("group_index", group_index, (1,), "[G]")
        valid = is_running_sum(ends) & (ends[-1] <= rows)
        check_values(check, "group_index", group_index, valid, f"non-decreasing and end within the {rows} rows")
        second, scale2 = quantized_in_groups(values, ends, form, round_mode, scale_alg)
    return mx.stored(first, form), mx.in_pairs(codes, -1), mx.stored(second, form), scale2


def swiglu_mx_quant_with_dual_axis(
    x: Tensor,
    *,
    group_index: Tensor | None = None,
    activate_left: bool = True,
    round_mode: str = "rint",
    scale_alg: int = 1,
    dst_type: int = 24,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y1, mxscale1, y2, mxscale2, as the module's document says. Raises ValueError for what it excludes."""
    form = _checked(_FORWARD, x, round_mode, scale_alg, dst_type, dst_type_max)
    values = gated(x.float(), -1, activate_left).to(x.dtype).float()
    return _along_both(_FORWARD, values, group_index, form, round_mode, scale_alg)


def swiglu_backward_mx_quant_with_dual_axis(
    x: Tensor,
    y_grad: Tensor,
    *,
    group_index: Tensor | None = None,
    activate_left: bool = True,
    round_mode: str = "rint",
    scale_alg: int = 1,
    dst_type: int = 24,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of the gradient of x."""
    form = _checked(_BACKWARD, x, round_mode, scale_alg, dst_type, dst_type_max)
    check, half = Checks(_BACKWARD), [x.shape[0], x.shape[1] // 2]
    check.dtype("y_grad", y_grad, (x.dtype,))
    check.size(list(y_grad.shape) == half, "y_grad", f"of shape {half}", y_grad)
    left, right = x.float().chunk(2, -1)
    active, linear = (left, right) if activate_left else (right, left)
    sigmoid, grad = torch.sigmoid(active), y_grad.float()
    of_active = grad * linear * sigmoid * (1 + active - active * sigmoid)
    of_linear = grad * active * sigmoid
    halves = (of_active, of_linear) if activate_left else (of_linear, of_active)
    values = torch.cat(halves, -1).to(x.dtype).float()
    return _along_both(_BACKWARD, values, group_index, form, round_mode, scale_alg)


OPERATOR = of_torch_npu(_FORWARD, swiglu_mx_quant_with_dual_axis)
BACKWARD_OPERATOR = of_torch_npu(_BACKWARD, swiglu_backward_mx_quant_with_dual_axis)
