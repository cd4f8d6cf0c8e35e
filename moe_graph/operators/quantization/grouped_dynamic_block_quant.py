"""`npu_grouped_dynamic_block_quant(x, group_list, *, ...)`: npu_dynamic_block_quant whose blocks begin anew in each group of rows.

    x [M, N] or [B, M, N] float16, bfloat16   group_list [G] int32: where each group's rows end, M at last (group_list_type 0)
    -> y like x, scale float32 [..., M // rows + G, ceil(N / columns)]

The scales of a group that begins at row s as the g-th lie from place s // row_block_size + g on; places of no block are 0 here and not
written on a device. dst_type float8_e5m2 (default), float8_e4m3fn with round_mode "rint", hifloat8 (as uint8) with "round". min_scale,
dst_type_max, infinity, NaN and zeros as in `dynamic_block_quant`. Only Ascend 950 has it. Sources: the documents of
aclnnGroupedDynamicBlockQuant and V2 (ops-nn, quant/grouped_dynamic_block_quant), torch_npu's fake implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import destination, hifloat8, mx
from moe_graph.operators.quantization.dynamic_block_quant import (
    COLUMNS,
    ROWS,
    check_maximum,
    divided,
    finite_magnitudes,
    scales,
)
from moe_graph.operators.quantization.int8 import INT8_MAX, check_values, group_of_rows, is_running_sum

_check = Checks("npu_grouped_dynamic_block_quant")


def _computed(
    x: Tensor,
    group_list: Tensor,
    min_scale: float,
    round_mode: str,
    maximum: float,
    row_block_size: int,
    col_block_size: int,
    group_list_type: int,
    dst_type_max: float,
) -> tuple[Tensor, Tensor]:
    mx.only_on_950("npu_grouped_dynamic_block_quant")
    _check.dtype("x", x, (torch.float16, torch.bfloat16))
    _check.rank("x", x, (2, 3), "[M, N] or [B, M, N]")
    _check.rank("group_list", group_list, (1,), "[G]")
    _check.value("group_list_type", group_list_type, (0,))
    _check.value("row_block_size", row_block_size, ROWS)
    _check.value("col_block_size", col_block_size, COLUMNS)
    if maximum == INT8_MAX:
        _check.refuse("dst_type", "float8_e5m2, float8_e4m3fn or hifloat8", "int8")
    check_maximum(_check, maximum, dst_type_max, min_scale, round_mode)
    _check.value("round_mode", round_mode, ("round",) if maximum == hifloat8.MAXIMUM else ("rint",))
    rows, columns = x.shape[-2:]
    ends = group_list.long()
    valid = is_running_sum(ends) & (ends[-1] == rows)
    check_values(_check, "group_list", group_list, valid, f"non-decreasing and end with the {rows} rows")
    group = group_of_rows(ends, rows).clamp_max(len(ends) - 1)
    start = torch.cat((ends.new_zeros(1), ends[:-1]))[group]
    block = start // row_block_size + group + (torch.arange(rows) - start) // row_block_size
    of_rows = mx.blocks(finite_magnitudes(x), -1, col_block_size).amax(-1)  # [..., M, blocks along N]
    places = of_rows.new_zeros(*of_rows.shape[:-2], rows // row_block_size + len(ends), of_rows.shape[-1])
    index = block.unsqueeze(1).expand_as(of_rows)
    scale = scales(places.scatter_reduce(-2, index, of_rows, "amax"), maximum, dst_type_max, min_scale)
    of_values = scale.index_select(-2, block).repeat_interleave(col_block_size, -1)[..., :columns]
    return divided(x, of_values, maximum, round_mode), scale


def grouped_dynamic_block_quant(
    x: Tensor,
    group_list: Tensor,
    *,
    min_scale: float = 0.0,
    round_mode: str = "rint",
    dst_type: int = 291,
    row_block_size: int = 1,
    col_block_size: int = 128,
    group_list_type: int = 0,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """y and scale, as the module's document says. Raises ValueError for what it excludes."""
    maximum = destination.largest("npu_grouped_dynamic_block_quant: dst_type", dst_type, float8=True)
    sizes = (row_block_size, col_block_size, group_list_type, dst_type_max)
    return _computed(x, group_list, min_scale, round_mode, maximum, *sizes)


def _ge_grouped_dynamic_block_quant(
    x: Tensor,
    group_list: Tensor,
    *,
    min_scale: float = 0.0,
    round_mode: str = "rint",
    dst_type: GeType = 35,  # type: ignore[assignment]
    row_block_size: int = 1,
    col_block_size: int = 128,
    group_list_type: int = 0,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """GE GroupedDynamicBlockQuant."""
    maximum = destination.largest_of_ge("GroupedDynamicBlockQuant: dst_type", dst_type)
    sizes = (row_block_size, col_block_size, group_list_type, dst_type_max)
    return _computed(x, group_list, min_scale, round_mode, maximum, *sizes)


OPERATOR = of_torch_npu(
    "npu_grouped_dynamic_block_quant",
    grouped_dynamic_block_quant,
    ge=[GeKernel("GroupedDynamicBlockQuant", _ge_grouped_dynamic_block_quant)],
)
