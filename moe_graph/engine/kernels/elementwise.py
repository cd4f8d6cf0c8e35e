"""Elementwise arithmetic and activations. Binary operators broadcast as NumPy does; operands have one dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import Tensors, kernel


@kernel("Add", "AddV2")
def add(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Add: x1 + x2."""
    return x1 + x2


@kernel("AddN")
def add_n(x: Tensors, *, N: int) -> Tensor:  # noqa: N803
    """GE AddN: the sum of the tensors x."""
    return torch.stack(x).sum(0, dtype=x[0].dtype)


@kernel("Sub")
def sub(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Sub: x1 - x2."""
    return x1 - x2


@kernel("Mul")
def mul(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Mul: x1 * x2."""
    return x1 * x2


@kernel("Muls")
def muls(x: Tensor, *, value: float) -> Tensor:
    """GE Muls: x times a number."""
    return x * value


@kernel("RealDiv")
def real_div(x1: Tensor, x2: Tensor) -> Tensor:
    """GE RealDiv: the true quotient of floating-point operands; of integers the quotient rounded towards zero."""
    return x1 / x2 if x1.is_floating_point() or x1.is_complex() else torch.div(x1, x2, rounding_mode="trunc")


@kernel("Div")
def div(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Div: the quotient, of integers rounded towards zero."""
    return real_div(x1, x2)


@kernel("FloorDiv")
def floor_div(x1: Tensor, x2: Tensor) -> Tensor:
    """GE FloorDiv: the quotient rounded down."""
    return torch.floor_divide(x1, x2)


@kernel("Maximum")
def maximum(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Maximum: the larger of two."""
    return torch.maximum(x1, x2)


@kernel("Minimum")
def minimum(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Minimum: the smaller of two."""
    return torch.minimum(x1, x2)


@kernel("Neg")
def neg(x: Tensor) -> Tensor:
    """GE Neg: -x."""
    return -x


@kernel("Exp")
def exp(x: Tensor, *, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """GE Exp: base ** (scale * x + shift); base -1 is e."""
    y = x * scale + shift
    return torch.exp(y) if base == -1.0 else torch.pow(base, y)


@kernel("Relu")
def relu(x: Tensor) -> Tensor:
    """GE Relu: max(x, 0)."""
    return torch.relu(x)


@kernel("Sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """GE Sigmoid."""
    return torch.sigmoid(x)


@kernel("Tanh")
def tanh(x: Tensor) -> Tensor:
    """GE Tanh."""
    return torch.tanh(x)


@kernel("Swish")
def swish(x: Tensor, *, scale: float = 1.0) -> Tensor:
    """GE Swish: x * sigmoid(scale * x)."""
    return torch.nn.functional.silu(x) if scale == 1.0 else x * torch.sigmoid(scale * x)


@kernel("SoftmaxV2")
def softmax_v2(x: Tensor, *, axes: list = (-1,), half_to_float: bool = False) -> Tensor:
    """GE SoftmaxV2: softmax along one dimension; half_to_float computes and returns float32."""
    (axis,) = axes
    return torch.softmax(x, axis, dtype=torch.float32 if half_to_float else None)
