"""`npu_dynamic_quant(input, ...)`: int8, int4 or float8 tokens and the scales that were computed from them.

    input [..., H] -> y [..., H] int8, or int4 packed in int32 [..., H / 8] (dst_type torch.quint4x2, torch_npu.int4); scale float32
                    on Ascend 950 float8_e5m2, float8_e4m3fn, hifloat8 (as uint8), whose largest value dst_type_max may replace
    quant_mode      pertoken (scale [...]: of each token), pertensor ([1]), perchannel ([..., H]: the last size but one is gone)
    smooth_scales   [H] (perchannel: [input.shape[-2]]), multiplied in before; with group_index [G] it is [G, H], a row for each group
    group_index     int32 running sum of the groups' tokens, ends with the number of tokens

Sources: the operator's page in the torch_npu documentation; the documents of aclnnDynamicQuant and aclnnDynamicQuantV4 (modes);
torch_npu's fake implementation. scale is the largest magnitude / the type's largest value: 127, 7, ... The device's kernels have pertensor
and perchannel on Ascend 950 alone. Halves go to even, those of hifloat8 away from zero. Not served: in graphs float8 but per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import declare
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import destination, hifloat8, int4
from moe_graph.operators.quantization.int8 import INT8_MAX, check_values, group_of_rows, is_running_sum

_check = Checks("npu_dynamic_quant")
DTYPES = (torch.float16, torch.bfloat16)
PER_TOKEN, PER_TENSOR, PER_CHANNEL = "pertoken", "pertensor", "perchannel"


def check_arguments(
    check: Checks,
    x: Tensor,
    smooth_scales: Tensor | None,
    group_index: Tensor | None,
    dst_type: int | None,
    quant_mode: str,
    dst_type_max: float,
) -> None:
    check.dtype("input", x, DTYPES)
    check.rank("input", x, range(2, 9), "[..., H] of 2 to 8 dimensions")
    is_int8 = dst_type is None or dtypes.from_number(dst_type) == torch.int8
    if not is_int8 and dst_type not in (*destination.INT4_NUMBERS, *destination.FLOAT8_NUMBERS):
        check.refuse("dst_type", "torch.int8, int4 or a type of float8", dtypes.name(dst_type))  # type: ignore[arg-type]
    if dst_type in destination.FLOAT8_NUMBERS:
        destination.largest("npu_dynamic_quant: dst_type", dst_type, float8=True)
    if dst_type in destination.INT4_NUMBERS:
        check.size(x.shape[-1] % 8 == 0, "input", "of a last size that 8 divides, for int4", x)
    check.value("quant_mode", quant_mode, (PER_TOKEN, PER_TENSOR, PER_CHANNEL))
    if dst_type_max != 0.0 and not (dst_type == hifloat8.NUMBER and 0 < dst_type_max <= hifloat8.MAXIMUM):
        check.refuse("dst_type_max", "0.0, or up to 32768 with hifloat8", dst_type_max)
    if group_index is not None:
        if smooth_scales is None or quant_mode != PER_TOKEN:
            check.refuse(
                "group_index", "None without smooth_scales and outside quant_mode 'pertoken'", group_index.shape
            )
        check.dtype("group_index", group_index, (torch.int32,))
        check.rank("group_index", group_index, (1,), "[G]")
        check.device("group_index", group_index, "input", x)
        check.size(group_index.shape[0] > 0, "group_index", "of at least one group", group_index)
    if smooth_scales is not None:
        width = x.shape[-2 if quant_mode == PER_CHANNEL else -1]
        check.dtype("smooth_scales", smooth_scales, (x.dtype,))
        check.device("smooth_scales", smooth_scales, "input", x)
        shape = "[H]" if group_index is None else "[G, H]"
        check.rank("smooth_scales", smooth_scales, (1,) if group_index is None else (2,), shape)
        check.size(smooth_scales.shape[-1] == width, "smooth_scales", f"of last size {width}", smooth_scales)
        if group_index is not None:
            groups = group_index.shape[0]
            check.size(smooth_scales.shape[0] == groups, "smooth_scales", f"of first size {groups}", smooth_scales)


def fake(
    x: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = PER_TOKEN,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """y of the input's shape, int8, or int4 packed; and scale, float32."""
    check_arguments(_check, x, smooth_scales, group_index, dst_type, quant_mode, dst_type_max)
    shape = {PER_TOKEN: x.shape[:-1], PER_TENSOR: (1,), PER_CHANNEL: (*x.shape[:-2], x.shape[-1])}[quant_mode]
    scale = x.new_empty(shape, dtype=torch.float32)
    if dst_type in destination.INT4_NUMBERS:
        return x.new_empty((*x.shape[:-1], x.shape[-1] // 8), dtype=torch.int32), scale
    if dst_type in destination.FLOAT8_NUMBERS:
        y = destination.dtype_of(destination.largest("dst_type", dst_type, float8=True))
        return x.new_empty(x.shape, dtype=y), scale
    return x.new_empty(x.shape, dtype=torch.int8), scale


def dynamic_quant(
    x: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = PER_TOKEN,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """y and scale, as the module's document says. Raises ValueError on arguments that the document excludes or that are not served."""
    check_arguments(_check, x, smooth_scales, group_index, dst_type, quant_mode, dst_type_max)
    values = _smoothed(x, smooth_scales, group_index, quant_mode)
    if dst_type in destination.INT4_NUMBERS:
        whole, scale = _int4(values, quant_mode)
        return int4.packed(whole), scale
    maximum: float = INT8_MAX
    if dst_type in destination.FLOAT8_NUMBERS:
        maximum = destination.largest("npu_dynamic_quant: dst_type", dst_type, float8=True)
    y, scale = destination.dynamic(values, maximum, _dims(values, quant_mode), dst_type_max)
    return y, _without_ones(scale, quant_mode)


_DIMS = {PER_TOKEN: (-1,), PER_CHANNEL: (-2,), PER_TENSOR: ()}


def _dims(values: Tensor, quant_mode: str) -> Sequence[int]:
    return _DIMS[quant_mode] or range(values.dim())


def _smoothed(x: Tensor, smooth_scales: Tensor | None, group_index: Tensor | None, quant_mode: str) -> Tensor:
    values = x.float()
    if smooth_scales is None:
        return values
    return values * factors(_check, values, smooth_scales.float(), group_index, quant_mode)


def _int4(values: Tensor, quant_mode: str) -> tuple[Tensor, Tensor]:
    """Whole numbers from -7 to 7, float32, and their scales."""
    scale = values.abs().amax(tuple(_dims(values, quant_mode)), keepdim=True) / int4.INT4_MAX
    return destination.steps(values, scale, int4.INT4_MAX), _without_ones(scale, quant_mode)


def _without_ones(scale: Tensor, quant_mode: str) -> Tensor:
    """Scales without the dimension that they are of: [1] of a whole tensor."""
    return scale.squeeze(_DIMS[quant_mode][0]) if _DIMS[quant_mode] else scale.reshape(1)


def factors(
    check: Checks, values: Tensor, smooth_scales: Tensor, group_index: Tensor | None, quant_mode: str
) -> Tensor:
    """What the values are multiplied with, in a shape that broadcasts."""
    if quant_mode == PER_CHANNEL:
        return smooth_scales.unsqueeze(-1)
    if group_index is None:
        return smooth_scales
    rows = values.shape[:-1].numel()
    valid = is_running_sum(group_index) & (group_index[-1] == rows)
    check_values(check, "group_index", group_index, valid, f"non-decreasing and end with the {rows} tokens")
    group = group_of_rows(group_index, rows).clamp_max(len(smooth_scales) - 1)
    return smooth_scales.index_select(0, group).view(values.shape)


def _ge_dynamic_quant(
    x: Tensor,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    *,
    dst_type: GeType = 2,  # type: ignore[assignment]
) -> tuple[Tensor, Tensor]:
    """GE DynamicQuant: int8, int4 or float8, and a scale for each token."""
    if dst_type.name == "DT_INT4":
        whole, scale = _int4(_smoothed(x, smooth_scales, group_index, PER_TOKEN), PER_TOKEN)
        return int4.carried(whole), scale
    number = destination.number_of_ge("DynamicQuant: dst_type", dst_type)
    return dynamic_quant(x, smooth_scales=smooth_scales, group_index=group_index, dst_type=number)


OPERATOR = declare(
    "npu_dynamic_quant(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, int? dst_type=None, "
    'str quant_mode="pertoken", float dst_type_max=0.) -> (Tensor, Tensor)',
    fake=fake,
    fallback=dynamic_quant,
    ge=[GeKernel("DynamicQuant", _ge_dynamic_quant)],
)
