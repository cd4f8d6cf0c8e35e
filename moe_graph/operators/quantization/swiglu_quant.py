"""`npu_swiglu_quant(x, *, smooth_scales, offsets, group_index, ...)`: swiglu, then quantization with each group's own scales.

    x [..., 2N] floating point -> y [..., N] int8, scale [...] float32
    swiglu          silu(A) * B: A the left half if activate_left, else the right
    smooth_scales   [G, N] or [G] float32 (G = 1 without group_index); offsets the same, for quant_mode 0 alone
    group_index     [G] int32: where each group's rows end (group_list_type 0), or how many it has (1)

    quant_mode 0    y = round(v * smooth_scales + offsets), scale is 0: there is none
    quant_mode 1    v = v * smooth_scales, scale = 127 / max |v| of the row, y = round(v * scale)

Sources: the operator's page in the torch_npu documentation; the document of aclnnSwiGluQuantV2 (ops-nn). It is the scale that the row is
multiplied by: a row of zeros has scale inf and, here, zeros. Computed in float32; halves are rounded to even. Rows beyond the groups are
0 here and not written on a device. torchair has no converter. Not served: int4, whose eager and fake shapes differ in torch_npu.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.activation.swiglu import gated
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.quantization import destination
from moe_graph.operators.quantization.int8 import INT8_MAX, check_values, group_of_rows, is_running_sum

_check = Checks("npu_swiglu_quant")
STATIC, DYNAMIC = 0, 1


def _of_rows(parameter: Tensor | None, group: Tensor | None) -> Tensor | None:
    """Given for each group [G, N] or [G], it as float32 for each row; of the one group, once."""
    if parameter is None:
        return None
    if group is None:
        return parameter.float().reshape(1, -1)
    wide = parameter.float() if parameter.dim() == 2 else parameter.float().unsqueeze(1)
    return wide.index_select(0, group.clamp_max(len(wide) - 1))


def swiglu_quant(
    x: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    offsets: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = STATIC,
    group_list_type: int = 0,
    dst_type: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """y and scale. Raises ValueError for modes and shapes that the document excludes, NotImplementedError for int4."""
    if dst_type not in (None, torch.int8):
        raise NotImplementedError(f"npu_swiglu_quant: dst_type must be int8, got {dst_type}")
    _check.value("quant_mode", quant_mode, (STATIC, DYNAMIC))
    _check.value("group_list_type", group_list_type, (0, 1))
    _check.size(x.shape[-1] % 2 == 0, "x", "of even last size", x)
    if quant_mode == STATIC and (smooth_scales is None or offsets is None or smooth_scales.shape != offsets.shape):
        _check.refuse(
            "offsets",
            "given, of smooth_scales' shape, with quant_mode 0",
            offsets if offsets is None else offsets.shape,
        )
    rows = x.reshape(-1, x.shape[-1]).float()
    values = gated(rows, -1, activate_left)
    group = None
    if group_index is not None:
        ends = group_index.cumsum(0) if group_list_type == 1 else group_index
        valid = is_running_sum(ends) & (ends[-1] <= len(rows))
        check_values(_check, "group_index", group_index, valid, f"groups of x's {len(rows)} rows")
        group = group_of_rows(ends, len(rows))
    factors = _of_rows(smooth_scales, group)
    values = values if factors is None else values * factors
    shift = _of_rows(offsets, group) if quant_mode == STATIC else None
    if shift is not None:
        values, scale = values + shift, values.new_zeros(len(rows))
    else:
        scale = INT8_MAX / values.abs().amax(-1)
        values = values * scale.nan_to_num(posinf=0.0).unsqueeze(1)
    if group is not None and group_index is not None:
        beyond = group.eq(len(group_index))
        values, scale = values.masked_fill(beyond.unsqueeze(1), 0), scale.masked_fill(beyond, 0)
    y = destination.rounded(values, INT8_MAX)
    return y.view(*x.shape[:-1], y.shape[-1]), scale.view(x.shape[:-1])


OPERATOR = of_torch_npu("npu_swiglu_quant", swiglu_quant)
