"""`npu_swiglu(input, dim=-1)`: the halves of `input` along `dim` are A and B; the result is silu(A) * B. And its gradient as an operator.

Source: the operator's page in the torch_npu documentation; GE SwiGlu and SwiGluGrad. Intermediate values are float32 for float16 and
bfloat16, as in the kernel, and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import declare
from moe_graph.operators.ge import GeKernel, renamed

_check = Checks("npu_swiglu")
_check_backward = Checks("npu_swiglu_backward")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _check_arguments(check: Checks, x: Tensor, dim: int) -> None:
    """Raise ValueError unless `input` is floating point and has an even size along `dim`."""
    check.dtype("input", x, DTYPES)
    check.value("dim", dim, range(-x.dim(), x.dim()))
    check.size(x.shape[dim] % 2 == 0, "input", f"of even size along dim {dim}", x)


def _half(x: Tensor, dim: int) -> list[int]:
    shape = list(x.shape)
    shape[dim] = shape[dim] // 2
    return shape


def fake(x: Tensor, dim: int = -1) -> Tensor:
    """Shape of `input`, halved along `dim`."""
    _check_arguments(_check, x, dim)
    return x.new_empty(_half(x, dim))


def gated(values: Tensor, dim: int = -1, activate_left: bool = True) -> Tensor:
    """silu(A) * B of the halves of float32 values along dim, A the left one if activate_left, else the right; not rounded."""
    left, right = values.chunk(2, dim)
    active, linear = (left, right) if activate_left else (right, left)
    return torch.nn.functional.silu(active) * linear


def gated_in_pairs(values: Tensor, clamp_limit: float, glu_alpha: float, glu_bias: float) -> Tensor:
    """gpt-oss's: A, B the even and the odd elements of the last dimension, clamped (A from above alone).

    A * sigmoid(glu_alpha * A) * (B + glu_bias) of float32 values, not rounded."""
    active = values[..., ::2].clamp(max=clamp_limit)
    linear = values[..., 1::2].clamp(-clamp_limit, clamp_limit)
    return active * torch.sigmoid(glu_alpha * active) * (linear + glu_bias)


def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    """silu(A) * B of the halves A, B of `input` [..., 2 H, ...] along `dim` -> [..., H, ...], dtype of `input`."""
    _check_arguments(_check, x, dim)
    return gated(x.float(), dim).to(x.dtype)


def _check_gradient(grad_output: Tensor, x: Tensor, dim: int) -> None:
    _check_arguments(_check_backward, x, dim)
    _check_backward.dtype("grad_output", grad_output, (x.dtype,))
    _check_backward.device("grad_output", grad_output, "input", x)
    half = _half(x, dim)
    _check_backward.rank("grad_output", grad_output, (x.dim(),), "that of npu_swiglu's result")
    for size, expected in zip(grad_output.shape, half):
        _check_backward.size(size == expected, "grad_output", f"of the result's shape {tuple(half)}", grad_output)


def fake_backward(grad_output: Tensor, x: Tensor, dim: int = -1) -> Tensor:
    """Shape of `input`."""
    _check_gradient(grad_output, x, dim)
    return x.new_empty(x.shape)


def swiglu_backward(grad_output: Tensor, x: Tensor, dim: int = -1) -> Tensor:
    """The gradient of `npu_swiglu` at `input`, given that of its result: its shape and dtype are those of `input`."""
    _check_gradient(grad_output, x, dim)
    left, right = x.float().chunk(2, dim)
    grad, gate = grad_output.float(), torch.sigmoid(left)
    swish = left * gate
    return torch.cat((grad * right * (gate + swish * (1 - gate)), grad * swish), dim).to(x.dtype)


OPERATOR = declare(
    "npu_swiglu(Tensor input, int dim=-1) -> Tensor",
    fake=fake,
    fallback=swiglu,
    differentiable=True,
    ge=[GeKernel("SwiGlu", renamed(swiglu))],
)
BACKWARD_OPERATOR = declare(
    "npu_swiglu_backward(Tensor grad_output, Tensor input, int dim=-1) -> Tensor",
    fake=fake_backward,
    fallback=swiglu_backward,
    differentiable=True,
    ge=[GeKernel("SwiGluGrad", renamed(swiglu_backward, y_grad="grad_output"))],
)
