"""Mean and inverse standard deviation, and the gradient of a normalization by them, in float32: what the layer norms share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def moments(values: Tensor, dims: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor]:
    """mean and 1 / sqrt(variance + epsilon) of float32 values along `dims`, which keep size 1."""
    mean = values.mean(tuple(dims), keepdim=True)
    return mean, torch.rsqrt((values - mean).square().mean(tuple(dims), keepdim=True) + epsilon)


def gradient(through: Tensor, normalized: Tensor, rstd: Tensor, dims: Sequence[int]) -> Tensor:
    """The gradient of the values from `through`, that of the normalized ones, whose mean and deviation they decide."""
    along = tuple(dims)
    mean = through.mean(along, keepdim=True)
    return rstd * (through - mean - normalized * (through * normalized).mean(along, keepdim=True))
