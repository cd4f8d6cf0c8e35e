"""`npu_group_quant(x, scale, group_index, *, offset=None, dst_dtype=None)`: tokens quantised with the scales of their group.

    x [S, H] floating point   scale [E, H]   group_index [E] int32, int64: where each group's rows end, S at last   offset [1]
    y = round(x * scale of the group + offset)   [S, H] int8 (None), or int4 packed in int32 [S, H / 8] (quint4x2)

Source: the operator's page in the torch_npu documentation. Computed in float32; halves are rounded to even, y is cut to its type's range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import destination, int4
from moe_graph.operators.quantization.int8 import INT8_MAX, check_values, group_of_rows, is_running_sum

_check = Checks("npu_group_quant")


def _values(x: Tensor, scale: Tensor, group_index: Tensor, offset: Tensor | None) -> Tensor:
    _check.rank("x", x, (2,), "[S, H]")
    _check.rank("scale", scale, (2,), "[E, H]")
    _check.rank("group_index", group_index, (1,), "[E]")
    _check.size(scale.shape[1] == x.shape[1], "scale", f"of shape [E, H], H = {x.shape[1]}", scale)
    _check.size(group_index.shape[0] == scale.shape[0], "group_index", f"of E = {scale.shape[0]} groups", group_index)
    rows = x.shape[0]
    valid = is_running_sum(group_index) & (group_index[-1] == rows)
    check_values(_check, "group_index", group_index, valid, f"non-decreasing and end with the {rows} rows")
    values = x.float() * scale.float().index_select(0, group_of_rows(group_index, rows).clamp_max(len(scale) - 1))
    return values if offset is None else values + offset.float()


def group_quant(
    x: Tensor,
    scale: Tensor,
    group_index: Tensor,
    *,
    offset: Tensor | None = None,
    dst_dtype: torch.dtype | None = None,
) -> Tensor:
    """As the module's document says. Raises ValueError for shapes and groups that do not fit."""
    numbers = {None: None, torch.int8: 1, torch.qint8: 1, torch.quint4x2: 16}
    if dst_dtype not in numbers:
        raise NotImplementedError(f"npu_group_quant: dst_dtype must be int8, qint8 or quint4x2, got {dst_dtype}")
    maximum = destination.largest("npu_group_quant: dst_dtype", numbers[dst_dtype])
    return destination.rounded(_values(x, scale, group_index, offset), maximum)


def _ge_group_quant(
    x: Tensor,
    scale: Tensor,
    group_index: Tensor,
    offset: Tensor | None = None,
    *,
    dst_type: GeType = 2,  # type: ignore[assignment]
) -> Tensor:
    """GE GroupQuant."""
    values = _values(x, scale, group_index, offset)
    if dst_type.name == "DT_INT4":
        return int4.carried(values.round().clamp(int4.INT4_MIN, int4.INT4_MAX))
    if dst_type.name != "DT_INT8":
        raise NotImplementedError(f"GroupQuant: dst_type must be DT_INT8 or DT_INT4, got {dst_type.name}")
    return destination.rounded(values, INT8_MAX)


OPERATOR = of_torch_npu("npu_group_quant", group_quant, ge=[GeKernel("GroupQuant", _ge_group_quant)])
