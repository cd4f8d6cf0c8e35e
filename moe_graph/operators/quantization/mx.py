"""Block-scaled ("mx") values of Ascend 950: small floating-point elements, and a power of two for each block of them.

    elements    float4_e2m1 (0, 0.5, 1, 1.5, 2, 3, 4, 6), float4_e1m2 (0 to 1.75 by 0.25), float8_e4m3fn (to 448), float8_e5m2 (to 57344)
    scale       float8_e8m0: code c stands for 2^(c - 127), 255 for NaN. torch_npu hands it over as uint8
    stored      float4 two to a byte, the first in the low half, as uint8; scales of block 2p and 2p + 1 side by side: along the
                quantised axis there are ceil(blocks / 2) places, and a last dimension of 2 is added. An odd end has code 0

How a block of largest magnitude a gets its scale, by scale_alg:

    0   2^(floor(log2 a) - emax), emax the exponent of the type's largest value: 2, 0, 8, 15
    1   (float8) a / the type's largest value, rounded up to a power of two; a below max_low_bound counts as that
    2   (float4) as 0, and twice that if a, as bfloat16, is above 1.5 (dst_type_max 0, 6), 1.75 (7), 1.875 (1.875, of e1m2) times its
        power of two; another dst_type_max: a / dst_type_max, rounded up to a power of two

A block of zeros has code 0; one with infinity or NaN has code 255 and elements 0. Elements are x / scale, rounded once ("rint": halves to
even; of float4 also "round": halves away from zero, and "floor") and cut to the type's range. Sources: the documents of the aclnn
operators and the reference functions beside their kernels (ops-nn, quant/dynamic_mx_quant and its neighbours).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_graph.foundation import product
from moe_graph.operators import dtypes
from moe_graph.operators.ge import GeType
from moe_graph.operators.quantization import int4

BLOCK = 32
NAN_CODE = 255
_BIAS = 127
_E8M0 = getattr(torch, "float8_e8m0fnu", torch.uint8)


@dataclass(frozen=True)
class Format:
    """A type of elements.

    Attributes:
        ge: its name in GE
        maximum: its largest value
        mantissa: bits after the point
        least: the exponent of its least normal value
        dtype: the torch dtype of its values; None for four bits
    """

    ge: str
    maximum: float
    mantissa: int
    least: int
    dtype: torch.dtype | None = None

    @property
    def exponent(self) -> int:
        """The exponent of the largest value: the document's emax."""
        return math.frexp(self.maximum)[1] - 1


E2M1 = Format("DT_FLOAT4_E2M1", 6.0, 1, 0)
E1M2 = Format("DT_FLOAT4_E1M2", 1.75, 2, 0)
E4M3 = Format("DT_FLOAT8_E4M3FN", 448.0, 3, -6, getattr(torch, "float8_e4m3fn", None))
E5M2 = Format("DT_FLOAT8_E5M2", 57344.0, 2, -14, getattr(torch, "float8_e5m2", None))
FLOAT4, FLOAT8 = (E2M1, E1M2), (E4M3, E5M2)
_NUMBERS = {23: E5M2, 24: E4M3, 45: E2M1, 291: E5M2, 292: E4M3, 296: E2M1, 297: E1M2}


# scale_alg 2 by mantissa: the type and dst_type_max -> above which mantissa of the largest value the scale is doubled.
_THRESHOLDS = {(E2M1.ge, 0.0): 1.5, (E2M1.ge, 6.0): 1.5, (E2M1.ge, 7.0): 1.75, (E1M2.ge, 1.875): 1.875}


def only_on_950(operator: str) -> None:
    """Raise ValueError on another product: its kernel does not exist there."""
    name = product.current_product().name
    if name != "950":
        raise ValueError(f"{operator}: only Ascend 950 has it, the product is {name} (MOE_GRAPH_SIM_SOC, --soc)")


def of_number(name: str, number: int, allowed: Collection[Format] = (*FLOAT4, *FLOAT8)) -> Format:
    """The format with torch's or torch_npu's number. Raises ValueError, naming operator and argument, for one that is not allowed."""
    found = _NUMBERS.get(number)
    if found is None or found not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(f.ge[3:].lower() for f in allowed)}, got {dtypes.name(number)}"
        )
    return found


def of_ge(name: str, ge_type: GeType) -> Format:
    """The format of a GE attribute."""
    return of_name(name, ge_type.name)


def of_name(name: str, ge_name: str, allowed: Collection[Format] = (*FLOAT4, *FLOAT8)) -> Format:
    """The format with this name in GE."""
    for found in allowed:
        if found.ge == ge_name:
            return found
    raise ValueError(f"{name} must be one of {', '.join(f.ge for f in allowed)}, got {ge_name or 'no type'}")


def rounded(values: Tensor, form: Format, round_mode: str = "rint") -> Tensor:
    """float32 values -> the nearest of the format's, float32, cut to its range; NaN becomes 0."""
    exponent = (torch.frexp(values).exponent - 1).clamp_min(form.least) - form.mantissa
    steps = torch.ldexp(values.double(), -exponent)  # exact: a float32 times a power of two
    if round_mode == "rint":
        steps = steps.round()
    elif round_mode == "floor":
        steps = steps.floor()
    else:
        steps = steps.sign() * (steps.abs() + 0.5).floor()
    whole = torch.ldexp(steps, exponent).clamp(-form.maximum, form.maximum)
    return torch.copysign(whole, values.double()).float().masked_fill(values.isnan(), 0.0)


def encoded(values: Tensor, form: Format, round_mode: str = "rint") -> Tensor:
    """float32 values as the format's: its torch dtype, or one code of four bits in each uint8, as the host engine carries it."""
    whole = rounded(values, form, round_mode)
    if form.dtype is not None:
        return whole.to(form.dtype)
    magnitude = whole.abs()
    index = torch.searchsorted(_magnitudes(form), magnitude)
    return (index | (whole.signbit().long() << 3)).to(torch.uint8)


def decoded(elements: Tensor, form: Format) -> Tensor:
    """What `encoded` made, as float32."""
    if form.dtype is not None:
        return elements.float()
    codes = elements.long()
    return torch.where(codes >= 8, -1.0, 1.0) * _magnitudes(form)[codes & 7]


def _magnitudes(form: Format) -> Tensor:
    """The eight magnitudes of a format of four bits, by code."""
    if form is E1M2:
        return torch.arange(8) / 4
    return torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def stored(elements: Tensor, form: Format) -> Tensor:
    """`encoded` elements as torch_npu hands them over: four bits [..., K] as bytes [..., K / 2]. Raises ValueError for an odd K."""
    if form.dtype is not None:
        return elements
    if elements.shape[-1] % 2:
        raise ValueError(f"the last dimension of float4 values must be even, got {elements.shape[-1]}")
    return int4.in_bytes(elements)


def elements_of(x: Tensor, form: Format) -> Tensor:
    """What `stored` made, one code in each element again."""
    return x if form.dtype is not None else int4.of_bytes(x)


def power(codes: Tensor) -> Tensor:
    """The float64 numbers that scales stand for; NaN for code 255."""
    values = torch.ldexp(torch.ones(codes.shape, dtype=torch.float64), codes.int() - _BIAS)
    return values.masked_fill(codes == NAN_CODE, torch.nan)


def scale_codes(
    largest: Tensor, form: Format, scale_alg: int, dst_type_max: float = 0.0, max_low_bound: float = 0.0
) -> Tensor:
    """The codes, uint8, of blocks with these largest magnitudes (float32), as the module's document says."""
    largest = largest.clamp_min(max_low_bound)
    threshold = _THRESHOLDS.get((form.ge, dst_type_max)) if scale_alg == 2 else None
    if scale_alg == 0 or threshold is not None:
        mantissa, exponent = torch.frexp(largest if threshold is None else largest.bfloat16().float())
        codes = exponent - 1 - form.exponent + _BIAS
    else:
        mantissa, exponent = torch.frexp(largest / (dst_type_max or form.maximum))
        codes = exponent - 1 + _BIAS
        threshold = 1.0
    if threshold is not None:
        codes = codes + (2 * mantissa > threshold).int()  # frexp has the mantissa from 0.5 to 1
    codes = codes.clamp(0, NAN_CODE - 1).masked_fill(largest == 0, 0)
    return codes.masked_fill(~largest.isfinite(), NAN_CODE).to(torch.uint8)


def blocks(values: Tensor, axis: int, size: int = BLOCK) -> Tensor:
    """values with `axis` split in blocks [..., n, size, ...]; the last one is filled up with zeros."""
    count = -(-values.shape[axis] // size)
    missing = count * size - values.shape[axis]
    if missing:
        shape = list(values.shape)
        shape[axis] = missing
        values = torch.cat((values, values.new_zeros(shape)), axis)
    return values.unflatten(axis, (count, size))


def quantized(
    values: Tensor,
    axis: int,
    form: Format,
    round_mode: str = "rint",
    scale_alg: int = 0,
    dst_type_max: float = 0.0,
    max_low_bound: float = 0.0,
    size: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """float32 values -> `encoded` elements of their shape, and the codes of the blocks along `axis`, not yet in pairs."""
    axis %= values.dim()
    parts = blocks(values, axis, size)
    codes = scale_codes(parts.abs().amax(axis + 1), form, scale_alg, dst_type_max, max_low_bound)
    scaled = (parts.double() / power(codes).unsqueeze(axis + 1)).flatten(axis, axis + 1)
    return encoded(scaled.narrow(axis, 0, values.shape[axis]).float(), form, round_mode), codes


def in_pairs(codes: Tensor, axis: int) -> Tensor:
    """Codes [..., n, ...] as mxscale [..., ceil(n / 2), ..., 2]."""
    return blocks(codes, axis % codes.dim(), 2).movedim(axis % codes.dim() + 1, -1).contiguous()


def of_pairs(mxscale: Tensor, axis: int) -> Tensor:
    """What `in_pairs` made, as codes [..., 2 * pairs, ...]; uint8, or of GE's type. axis counts the codes' dimensions."""
    axis %= mxscale.dim() - 1
    return mxscale.view(torch.uint8).movedim(-1, axis + 1).flatten(axis, axis + 1)


def as_e8m0(codes: Tensor) -> Tensor:
    """Codes as the host engine carries GE's DT_FLOAT8_E8M0."""
    return codes.view(_E8M0)
