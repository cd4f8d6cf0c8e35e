"""Comparison, logic on truth values, bits of integers, and selection by a condition. Operands broadcast as NumPy's do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel

# GE types that are one of torch's functions of two tensors.
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Equal": torch.eq,
    "NotEqual": torch.ne,
    "Greater": torch.gt,
    "GreaterEqual": torch.ge,
    "Less": torch.lt,
    "LessEqual": torch.le,
    "LogicalAnd": torch.logical_and,
    "LogicalOr": torch.logical_or,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}


def _binary(ge_type: str, function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def call(x1: Tensor, x2: Tensor) -> Tensor:
        return function(x1, x2)

    call.__name__ = call.__qualname__ = ge_type
    call.__doc__ = f"GE {ge_type}: torch.{function.__name__} of each pair of elements."
    return call


for _ge_type, _function in BINARY.items():
    kernel(_ge_type)(_binary(_ge_type, _function))


@kernel("LeftShift")
def left_shift(x: Tensor, y: Tensor) -> Tensor:
    """GE LeftShift: x moved y bits to the left."""
    return torch.bitwise_left_shift(x, y)


@kernel("RightShift")
def right_shift(x: Tensor, y: Tensor) -> Tensor:
    """GE RightShift: x moved y bits to the right; the sign stays."""
    return torch.bitwise_right_shift(x, y)


@kernel("LogicalNot")
def logical_not(x: Tensor) -> Tensor:
    """GE LogicalNot: the contrary of each element."""
    return torch.logical_not(x)


@kernel("Invert")
def invert(x: Tensor) -> Tensor:
    """GE Invert: each bit of an integer inverted."""
    return torch.bitwise_not(x)


@kernel("IsNan")
def is_nan(x: Tensor) -> Tensor:
    """GE IsNan."""
    return torch.isnan(x)


@kernel("IsInf")
def is_inf(x: Tensor) -> Tensor:
    """GE IsInf."""
    return torch.isinf(x)


@kernel("IsFinite")
def is_finite(x: Tensor) -> Tensor:
    """GE IsFinite."""
    return torch.isfinite(x)


@kernel("SelectV2")
def select_v2(condition: Tensor, then: Tensor, else_: Tensor) -> Tensor:
    """GE SelectV2: then where condition is true, else the input named else."""
    return torch.where(condition, then, else_)


@kernel("Select")
def select(condition: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
    """GE Select: x1 where condition is true, else x2. A condition [N] beside x1 of more dimensions chooses entries of the first."""
    if condition.dim() == 1 < x1.dim():
        condition = condition.reshape(-1, *[1] * (x1.dim() - 1))
    return torch.where(condition, x1, x2)


@kernel("MaskedFill")
def masked_fill(x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """GE MaskedFill: value (one element) where mask is true, else x."""
    return torch.where(mask, value.reshape(()).to(x.dtype), x)
