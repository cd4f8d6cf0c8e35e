"""The type that a fused operator quantises to, which torch_npu takes as a number of torch: int8, or int4 packed in int32."""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.quantization import int4
from moe_graph.operators.quantization.int8 import INT8_MAX, to_int8

INT8_NUMBER, INT4_NUMBERS = 1, (16, 285)


def largest(name: str, number: int | None) -> int:
    """The largest value of the type with torch's or torch_npu's number: 127 of int8 (the default), 7 of int4.

    Raises NotImplementedError for another type, naming the argument."""
    if number in (None, INT8_NUMBER):
        return INT8_MAX
    if number in INT4_NUMBERS:
        return int4.INT4_MAX
    raise NotImplementedError(f"{name} must be int8 (1) or int4 (16), got the dtype with number {number}")


def rounded(values: Tensor, maximum: int) -> Tensor:
    """float32 values rounded, halves to even, and cut to the type whose largest value this is; int4 packed, [..., K] -> [..., K / 8]."""
    if maximum == INT8_MAX:
        return to_int8(values)
    return int4.packed(values.round().clamp(int4.INT4_MIN, int4.INT4_MAX))


def steps(values: Tensor, scale: Tensor, maximum: int) -> Tensor:
    """values / scale, whole, as float32 within the type whose largest value this is; 0 where scale is 0."""
    return (values / scale.masked_fill(scale == 0, 1)).round().clamp(-maximum - 1, maximum)
