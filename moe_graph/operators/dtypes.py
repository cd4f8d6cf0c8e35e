"""Data types as the operators' `int` parameters give them: torch's ScalarType numbers, and torch_npu's own from 285 on.

A `torch.dtype` handed to such a parameter arrives as its number. Source: the tables of torch_npu's fake implementations.
"""

from __future__ import annotations

import torch

INT8 = 1
_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}
_OTHERS = {
    16: "torch.quint4x2",
    21: "torch.bits8",
    23: "torch.float8_e5m2",
    24: "torch.float8_e4m3fn",
    285: "torch_npu.int4",
    290: "torch_npu.hifloat8",
    291: "torch_npu.float8_e5m2",
    292: "torch_npu.float8_e4m3fn",
    293: "torch_npu.float8_e8m0fnu",
    296: "torch_npu.float4_e2m1fn_x2",
    297: "torch_npu.float4_e1m2fn_x2",
}


def from_number(number: int | torch.dtype) -> torch.dtype | None:
    """The torch dtype with this number; None if it is none that the fallbacks compute with."""
    return number if isinstance(number, torch.dtype) else _DTYPES.get(number)


def to_number(dtype: torch.dtype) -> int:
    """The number of a torch dtype. Raises KeyError for one that the fallbacks do not compute with."""
    return next(number for number, known in _DTYPES.items() if known == dtype)


def name(number: int | torch.dtype) -> str:
    """The number for an error message: "torch_npu.hifloat8 (290)"."""
    if isinstance(number, torch.dtype):
        return str(number)
    known = from_number(number) or _OTHERS.get(number)
    return str(number) if known is None else f"{known} ({number})"
