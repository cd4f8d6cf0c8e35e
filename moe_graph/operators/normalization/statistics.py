"""Mean and inverse standard deviation, and the gradient of a normalization by them, in float32: what layer and group norms share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks


def moments(values: Tensor, dims: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor]:
    """mean and 1 / sqrt(variance + epsilon) of float32 values along `dims`, which keep size 1."""
    mean = values.mean(tuple(dims), keepdim=True)
    return mean, torch.rsqrt((values - mean).square().mean(tuple(dims), keepdim=True) + epsilon)


def gradient(through: Tensor, normalized: Tensor, rstd: Tensor, dims: Sequence[int]) -> Tensor:
    """The gradient of the values from `through`, that of the normalized ones, whose mean and deviation they decide."""
    along = tuple(dims)
    mean = through.mean(along, keepdim=True)
    return rstd * (through - mean - normalized * (through * normalized).mean(along, keepdim=True))


def grouped(check: Checks, argument: str, x: Tensor, groups: int) -> Tensor:
    """x [N, C, ...] as float32 [N, groups, values of each]. Raises ValueError, naming the argument, if groups does not divide C."""
    if groups < 1 or x.shape[1] % groups:
        check.refuse(argument, f"a divisor of C = {x.shape[1]}", groups)
    return x.float().reshape(x.shape[0], groups, -1)


def by_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter [C] as float32 that broadcasts to x [N, C, ...]."""
    return parameter.float().view(1, -1, *(1,) * (x.dim() - 2))


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """float32 x [N, C, ...] * weight [C] + bias [C], of which either may be missing."""
    y = x if weight is None else x * by_channel(weight, x)
    return y if bias is None else y + by_channel(bias, x)
