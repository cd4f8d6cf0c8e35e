"""`npu_swiglu_mx_quant(x, *, group_index, activate_dim, swiglu_mode, group_mode, axis, dst_type, ...)`: swiglu, then block quantization.

    x [..., 2H] float16, bfloat16, of 2 to 7 dimensions -> y [..., H] of dst_type, mxscale uint8, both as npu_dynamic_mx_quant has them
    swiglu_mode     0: silu(A) * B of the halves along activate_dim (-1 or -2), A the left one if activate_left, else the right
                    1: gpt-oss's: A, B the even and the odd elements of the last dimension, clamped by clamp_limit (A above alone);
                       A * sigmoid(glu_alpha * A) * (B + glu_bias)
    axis            -1 or -2: along which blocks of 32 lie
    group_index     [G] int64: rows of each group (group_mode 0) or where they end (1). Along axis -2 blocks begin anew in each group,
                    as in npu_grouped_dynamic_mx_quant (x [M, 2H]); what lies beyond the groups is 0 here and not written on a device

scale_alg 0, or 1 for float8. Only Ascend 950 has it. Sources: the document of aclnnSwigluMxQuant (ops-nn, quant/swiglu_mx_quant) and its
kernel, which rounds swiglu to x's dtype before it is quantised; torch_npu's adapter and fake implementation. Not served: groups with
activate_dim -2, of which the document does not say how they count halved rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_graph.operators.activation.swiglu import gated, gated_in_pairs
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import mx
from moe_graph.operators.quantization.dynamic_mx_quant import check_modes
from moe_graph.operators.quantization.grouped_dynamic_mx_quant import quantized_in_groups
from moe_graph.operators.quantization.int8 import check_values, is_running_sum

_check = Checks("npu_swiglu_mx_quant")


def _computed(
    x: Tensor,
    group_index: Tensor | None,
    form: mx.Format,
    activate_dim: int,
    activate_left: bool,
    swiglu_mode: int,
    clamp_limit: float,
    glu_alpha: float,
    glu_bias: float,
    group_mode: int,
    axis: int,
    round_mode: str,
    scale_alg: int,
) -> tuple[Tensor, Tensor]:
    """Elements, one each, and mxscale as uint8."""
    mx.only_on_950("npu_swiglu_mx_quant")
    _check.dtype("x", x, (torch.float16, torch.bfloat16))
    _check.rank("x", x, range(2, 8), "of 2 to 7 dimensions")
    last_two = (-1, -2, x.dim() - 1, x.dim() - 2)
    _check.value("activate_dim", activate_dim, last_two)
    _check.value("axis", axis, last_two)
    activate_dim, axis = activate_dim % x.dim() - x.dim(), axis % x.dim() - x.dim()
    _check.size(x.shape[activate_dim] % 2 == 0, "x", f"of an even size along dimension {activate_dim}", x)
    _check.value("swiglu_mode", swiglu_mode, (0, 1) if activate_dim == -1 else (0,))
    _check.value("group_mode", group_mode, (0, 1))
    _check.value("scale_alg", scale_alg, (0, 1))
    check_modes(_check, form, round_mode, scale_alg, 0.0)
    if not (math.isfinite(clamp_limit) and clamp_limit > 0):
        _check.refuse("clamp_limit", "positive and finite", clamp_limit)
    if swiglu_mode == 1:
        values = gated_in_pairs(x.float(), clamp_limit, glu_alpha, glu_bias)
    else:
        values = gated(x.float(), activate_dim, activate_left)
    values = values.to(x.dtype).float()  # rounded before it is quantised
    if group_index is None:
        elements, codes = mx.quantized(values, axis, form, round_mode, scale_alg)
        return elements, mx.in_pairs(codes, axis)
    if activate_dim == -2:
        raise NotImplementedError("npu_swiglu_mx_quant: activate_dim must be -1 with group_index, -2 is not served")
    rows = values.shape[:-1].numel()
    ends = (group_index.cumsum(0) if group_mode == 0 else group_index).long()
    valid = is_running_sum(ends) & (ends[-1] <= rows)
    check_values(_check, "group_index", group_index, valid, f"groups of x's {rows} rows")
    if axis == -2:
        _check.rank("x", x, (2,), "[M, 2H] with group_index and axis -2")
        return quantized_in_groups(values, ends, form, round_mode, scale_alg)
    used = (torch.arange(rows) < ends[-1]).view(*values.shape[:-1], 1)
    elements, codes = mx.quantized(values.masked_fill(~used, 0), -1, form, round_mode, scale_alg)
    return elements, mx.in_pairs(codes, -1)


def swiglu_mx_quant(
    x: Tensor,
    *,
    group_index: Tensor | None = None,
    activate_dim: int = -1,
    activate_left: bool = False,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
    group_mode: int = 0,
    axis: int = -1,
    dst_type: int = 296,
    round_mode: str = "rint",
    scale_alg: int = 0,
    max_dtype_value: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """y and mxscale, as the module's document says; max_dtype_value has no effect. Raises ValueError for what the document excludes."""
    form = mx.of_number("npu_swiglu_mx_quant: dst_type", dst_type)
    options = (activate_dim, activate_left, swiglu_mode, clamp_limit, glu_alpha, glu_bias, group_mode, axis)
    elements, scale = _computed(x, group_index, form, *options, round_mode, scale_alg)
    return mx.stored(elements, form), scale


def _ge_swiglu_mx_quant(
    x: Tensor,
    group_index: Tensor | None = None,
    *,
    activate_dim: int = -1,
    activate_left: bool = False,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
    group_mode: int = 0,
    axis: int = -1,
    dst_type: GeType = 40,  # type: ignore[assignment]
    round_mode: str = "rint",
    scale_alg: int = 0,
    max_dtype_value: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """GE SwigluMxQuant."""
    form = mx.of_ge("SwigluMxQuant: dst_type", dst_type)
    options = (activate_dim, activate_left, swiglu_mode, clamp_limit, glu_alpha, glu_bias, group_mode, axis)
    elements, scale = _computed(x, group_index, form, *options, round_mode, scale_alg)
    return elements, mx.as_e8m0(scale)


OPERATOR = of_torch_npu("npu_swiglu_mx_quant", swiglu_mx_quant, ge=[GeKernel("SwigluMxQuant", _ge_swiglu_mx_quant)])
