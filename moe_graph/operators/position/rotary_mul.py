"""`npu_rotary_mul(input, r1, r2, rotary_mode="half", rotate=None)`: input * r1 + rotated input * r2, float32 inside. And its gradient.

    half        (first half, second half) -> (-second half, first half)
    interleave  each pair (even, odd) -> (-odd, even)

Source: the operator's page in the torch_npu documentation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.gradients import vjp


def _rotated(x: Tensor, mode: str) -> Tensor:
    if mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)
    if mode == "interleave":
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    raise ValueError(f"rotary_mode must be 'half' or 'interleave' on the simulated device, got {mode!r}")


def rotary_mul(x: Tensor, cosine: Tensor, sine: Tensor, mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    """x with its pairs turned by the angles: x * cosine + rotated x * sine."""
    if rotate is not None:
        raise NotImplementedError("npu_rotary_mul: rotate is not modelled on the simulated device, it must be None")
    return (x.float() * cosine.float() + _rotated(x, mode).float() * sine.float()).to(x.dtype)


def rotary_mul_backward(grad: Tensor, x: Tensor, cosine: Tensor, sine: Tensor, mode: str = "half") -> tuple:
    """Gradients of x, cosine and sine."""
    return tuple(vjp(lambda a, r1, r2: rotary_mul(a, r1, r2, mode), (x, cosine, sine), grad))


OPERATOR = of_torch_npu("npu_rotary_mul", rotary_mul)
BACKWARD_OPERATOR = of_torch_npu("npu_rotary_mul_backward", rotary_mul_backward)
