"""`npu_grouped_dynamic_mx_quant(x, group_index, *, round_mode, dst_type, blocksize, scale_alg, dst_type_max)`: blocks in groups of rows.

    x [M, N] float16, bfloat16   group_index [G] int32: where each group's rows end, M at last
    -> y like x, of dst_type (float8_e5m2 by default), and mxscale uint8 [M // 64 + G, N, 2]

Blocks of 32 rows begin anew in each group; the scales of a group that begins at row s as the g-th lie from place s // 64 + g on, in pairs,
as `mx` says. Places of no block are 0 here and not written on a device. Modes as in `dynamic_mx_quant`, and for float4_e1m2 scale_alg 2
with dst_type_max 1.875. Only Ascend 950 has it. Sources: the documents of aclnnGroupedDynamicMxQuant and V2 (ops-nn,
quant/grouped_dynamic_mx_quant), the reference function beside the kernel, torch_npu's fake implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import mx
from moe_graph.operators.quantization.dynamic_mx_quant import check_modes
from moe_graph.operators.quantization.int8 import check_values, group_of_rows, is_running_sum

_check = Checks("npu_grouped_dynamic_mx_quant")


def quantized_in_groups(
    values: Tensor, ends: Tensor, form: mx.Format, round_mode: str, scale_alg: int, dst_type_max: float = 0.0
) -> tuple[Tensor, Tensor]:
    """float32 [M, N] and where groups end -> `mx.encoded` elements [M, N] and mxscale uint8 [M // 64 + G, N, 2]. Rows of no group are 0."""
    rows, columns = values.shape
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    group = group_of_rows(ends, rows)
    known = group < len(ends)
    group = group.clamp_max(len(ends) - 1)
    start = starts[group]
    places = 2 * (rows // 64 + len(ends))
    block = 2 * (start // 64 + group) + (torch.arange(rows) - start) // mx.BLOCK
    block = torch.where(known, block, places)  # what belongs to no group is reckoned apart
    largest = values.new_zeros(places + 1, columns)
    largest = largest.scatter_reduce(0, block.unsqueeze(1).expand(rows, columns), values.abs(), "amax")
    codes = mx.scale_codes(largest, form, scale_alg, dst_type_max)
    scaled = (values.double() / mx.power(codes[block])).float()
    elements = mx.encoded(scaled.masked_fill(~known.unsqueeze(1), 0), form, round_mode)
    return elements, mx.in_pairs(codes[:places], 0)


def _computed(
    x: Tensor,
    group_index: Tensor,
    form: mx.Format,
    round_mode: str,
    blocksize: int,
    scale_alg: int,
    dst_type_max: float,
) -> tuple[Tensor, Tensor]:
    mx.only_on_950("npu_grouped_dynamic_mx_quant")
    _check.dtype("x", x, (torch.float16, torch.bfloat16))
    _check.rank("x", x, (2,), "[M, N]")
    _check.rank("group_index", group_index, (1,), "[G]")
    _check.dtype("group_index", group_index, (torch.int32, torch.int64))
    _check.size(group_index.shape[0] > 0, "group_index", "of at least one group", group_index)
    _check.value("blocksize", blocksize, (mx.BLOCK,))
    if not (form is mx.E1M2 and scale_alg == 2 and dst_type_max == 1.875):
        check_modes(_check, form, round_mode, scale_alg, dst_type_max)
    valid = is_running_sum(group_index) & (group_index[-1] == x.shape[0])
    check_values(_check, "group_index", group_index, valid, f"non-decreasing and end with the {x.shape[0]} rows")
    return quantized_in_groups(x.float(), group_index.long(), form, round_mode, scale_alg, dst_type_max)


def grouped_dynamic_mx_quant(
    x: Tensor,
    group_index: Tensor,
    *,
    round_mode: str = "rint",
    dst_type: int = 23,
    blocksize: int = 32,
    scale_alg: int | None = 0,
    dst_type_max: float | None = 0.0,
) -> tuple[Tensor, Tensor]:
    """y and mxscale, as the module's document says. Raises ValueError for what it excludes."""
    form = mx.of_number("npu_grouped_dynamic_mx_quant: dst_type", dst_type)
    options = (round_mode, blocksize, scale_alg or 0, dst_type_max or 0.0)
    elements, scale = _computed(x, group_index, form, *options)
    return mx.stored(elements, form), scale


def _ge_grouped_dynamic_mx_quant(
    x: Tensor,
    group_index: Tensor,
    *,
    round_mode: str = "rint",
    dst_type: GeType = 35,  # type: ignore[assignment]
    blocksize: int = 32,
    scale_alg: int = 0,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """GE GroupedDynamicMxQuant."""
    form = mx.of_ge("GroupedDynamicMxQuant: dst_type", dst_type)
    elements, scale = _computed(x, group_index, form, round_mode, blocksize, scale_alg, dst_type_max)
    return elements, mx.as_e8m0(scale)


OPERATOR = of_torch_npu(
    "npu_grouped_dynamic_mx_quant",
    grouped_dynamic_mx_quant,
    ge=[GeKernel("GroupedDynamicMxQuant", _ge_grouped_dynamic_mx_quant)],
)
