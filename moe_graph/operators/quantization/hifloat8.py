"""hifloat8, Ascend's tapered type of eight bits, which torch lacks: torch_npu hands it over as uint8.

    sign, a prefix that tells how many bits the exponent has, the exponent's sign and its lower bits, the fraction:
    11 -> |E| 8 to 15, 1 bit of fraction     10 -> 4 to 7, 2 bits     01 -> 2 and 3, 3 bits     001 -> 1, 3 bits     0001 -> 0, 3 bits
    0000 and f -> 2^(f - 23), no fraction; 0 is zero     0x80 NaN     0x6f and 0xef the infinities     largest value 2^15

Source: the conversions in op-plugin's tests of the operators with hifloat8, which agree with the public package en-dtypes.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

NUMBER = 290
GE_NAME = "DT_HIFLOAT8"
MAXIMUM = 32768.0
_NAN, _INFINITY = 0x80, 0x6F


@functools.cache
def _values() -> Tensor:
    """The 256 values by code, float32."""
    return torch.tensor([_value(code) for code in range(256)], dtype=torch.float32)


def _value(code: int) -> float:
    sign, code = (-1.0 if code & 0x80 else 1.0), code & 0x7F
    if code == 0:
        return 0.0 if sign > 0 else torch.nan
    if code == _INFINITY:
        return sign * torch.inf
    if code < 8:
        return sign * 2.0 ** (code - 23)
    if code >= 0x20:
        exponent_bits, fraction_bits = {3: (4, 1), 2: (3, 2), 1: (2, 3)}[code >> 5]
    else:
        exponent_bits, fraction_bits = (1, 3) if code >= 0x10 else (0, 3)
    fraction = code & ((1 << fraction_bits) - 1)
    exponent = (code >> fraction_bits) & ((1 << exponent_bits) - 1)
    magnitude = 0
    if exponent_bits:
        top = 1 << (exponent_bits - 1)
        magnitude = top | (exponent & (top - 1))
        if exponent & top:
            magnitude = -magnitude
    return sign * 2.0**magnitude * (1 + fraction / (1 << fraction_bits))


@functools.cache
def _steps() -> tuple[Tensor, Tensor]:
    """The codes of finite magnitudes in rising order, and the middles between them, float32."""
    positive = _values()[:128]
    finite = positive.isfinite()
    order = positive.masked_fill(~finite, torch.inf).argsort()[: int(finite.sum())]
    rising = positive[order]
    return order.to(torch.uint8), (rising[1:] + rising[:-1]) / 2


def encoded(values: Tensor, saturate: bool = True) -> Tensor:
    """float32 values -> codes, uint8, of the nearest value, halves away from zero.

    saturate: what is too large is cut to the largest value and NaN becomes 0; otherwise they become infinity and NaN.
    """
    codes, middles = _steps()
    place = torch.searchsorted(middles, values.abs().contiguous(), right=True)
    found = codes[place]
    if not saturate:
        found = found.masked_fill(values.abs() >= 1.25 * MAXIMUM, _INFINITY)
    found = found | (values.signbit() & (found != 0)).to(torch.uint8) << 7
    return found.masked_fill(values.isnan(), 0 if saturate else _NAN)


def decoded(codes: Tensor) -> Tensor:
    """Codes as float32."""
    return _values()[codes.long()]
