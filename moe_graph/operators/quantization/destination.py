"""The type that a fused operator quantises to, which torch_npu takes as a number of torch: int8, or int4 packed in int32.

On Ascend 950 also float8_e5m2, float8_e4m3fn and hifloat8 (as uint8). Everywhere below a type is told by its largest value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.ge import GeType
from moe_graph.operators.quantization import hifloat8, int4, mx
from moe_graph.operators.quantization.int8 import INT8_MAX, dynamic_int8, to_int8

INT8_NUMBER, INT4_NUMBERS = 1, (16, 285)
_FLOAT8_NUMBERS = {23: mx.E5M2, 24: mx.E4M3, 291: mx.E5M2, 292: mx.E4M3}
FLOAT8_NUMBERS = (*_FLOAT8_NUMBERS, hifloat8.NUMBER)
"""Of the types of eight bits that Ascend 950 adds."""
_BY_MAXIMUM = {form.maximum: form for form in mx.FLOAT8}
_BY_GE = {form.ge: form.maximum for form in mx.FLOAT8} | {hifloat8.GE_NAME: hifloat8.MAXIMUM}
_DTYPES = {form.maximum: form.dtype or torch.uint8 for form in mx.FLOAT8} | {
    INT8_MAX: torch.int8,
    int4.INT4_MAX: torch.int32,
    hifloat8.MAXIMUM: torch.uint8,
}


def largest(name: str, number: int | None, float8: bool = False) -> float:
    """The largest value of the type with torch's or torch_npu's number: 127 of int8 (the default), 7 of int4.

    float8: the operator has 448 of float8_e4m3fn, 57344 of e5m2 and 32768 of hifloat8, too, on Ascend 950 alone.
    Raises NotImplementedError for another type, naming the argument; ValueError for one that the product lacks."""
    if number in (None, INT8_NUMBER):
        return INT8_MAX
    if number in INT4_NUMBERS:
        return int4.INT4_MAX
    if float8 and number in FLOAT8_NUMBERS:
        mx.only_on_950(f"{name} of {dtypes.name(number)}")
        return hifloat8.MAXIMUM if number == hifloat8.NUMBER else _FLOAT8_NUMBERS[number].maximum
    others = ", float8_e5m2 (23, 291), float8_e4m3fn (24, 292), hifloat8 (290)" if float8 else ""
    raise NotImplementedError(f"{name} must be int8 (1) or int4 (16){others}, got the dtype with number {number}")


def largest_of_ge(name: str, dst_type: GeType) -> float:
    """The largest value of a type that a GE attribute asks for: int8, or those of float8."""
    if dst_type.name in ("DT_INT8", "DT_QINT8"):
        return INT8_MAX
    if dst_type.name not in _BY_GE:
        raise NotImplementedError(f"{name} must be DT_INT8, {', '.join(_BY_GE)}, got {dst_type.name}")
    mx.only_on_950(f"{name} of {dst_type.name}")
    return _BY_GE[dst_type.name]


def number_of_ge(name: str, dst_type: GeType) -> int | None:
    """torch_npu's number of what `largest_of_ge` knows; None for int8."""
    return None if largest_of_ge(name, dst_type) == INT8_MAX else 256 + dst_type.ge  # torch_npu's are GE's, moved


def dtype_of(maximum: float) -> torch.dtype:
    """The torch dtype of what `rounded` returns."""
    return _DTYPES[maximum]


def rounded(values: Tensor, maximum: float) -> Tensor:
    """float32 values rounded and cut to the type whose largest value this is; int4 packed, [..., K] -> [..., K / 8].

    Halves go to even, those of hifloat8 away from zero."""
    if maximum == INT8_MAX:
        return to_int8(values)
    if maximum == hifloat8.MAXIMUM:
        return hifloat8.encoded(values)
    if maximum in _BY_MAXIMUM:
        return mx.encoded(values, _BY_MAXIMUM[maximum])
    return int4.packed(values.round().clamp(int4.INT4_MIN, int4.INT4_MAX))


def dynamic(
    values: Tensor, maximum: float, dims: int | Sequence[int] = -1, largest_step: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`rounded` float32 values / scale, and the float32 scales, one for the values along `dims`, which keep size 1.

    scale: the largest magnitude / the type's largest value, or largest_step in its place. Where all values are 0 the scale is 0."""
    if maximum == INT8_MAX:
        return dynamic_int8(values, dims)
    along = (dims,) if isinstance(dims, int) else tuple(dims)
    scale = values.abs().amax(along, keepdim=True) / (largest_step or maximum)
    return rounded(values / scale.masked_fill(scale == 0, 1), maximum), scale


def steps(values: Tensor, scale: Tensor, maximum: float) -> Tensor:
    """values / scale, whole, as float32 within the type whose largest value this is; 0 where scale is 0."""
    return (values / scale.masked_fill(scale == 0, 1)).round().clamp(-maximum - 1, maximum)
