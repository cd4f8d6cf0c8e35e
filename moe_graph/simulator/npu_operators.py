"""torch_npu's own operators: on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_graph.simulator.eager_call import as_dtype
from moe_graph.simulator.gradients import vjp


def _cast(x: Tensor, dtype: int, *_: Any) -> Tensor:
    """These take dtypes as torch's numbers, and behind them what only a kernel of the NPU would use."""
    return x.to(as_dtype(dtype), copy=True)


def _rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(x over the root of the mean square of the dimensions that gamma has, times gamma; one over that root, float32)."""
    wide = x.float()
    rstd = (wide.square().mean(tuple(range(-gamma.dim(), 0)), keepdim=True) + epsilon).rsqrt()
    return (wide * rstd * gamma.float()).to(x.dtype), rstd


def _rms_norm_backward(grad: Tensor, x: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    dims = tuple(range(-gamma.dim(), 0))
    wide, rstd = x.float(), rstd.float()
    through = grad.float() * gamma.float()
    mean = (through * wide).mean(dims, keepdim=True)
    for_x = through * rstd - wide * rstd**3 * mean
    return for_x.to(x.dtype), (grad.float() * wide * rstd).sum_to_size(gamma.shape)


def _add_rms_norm(x: Tensor, other: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    total = x + other
    y, rstd = _rms_norm(total, gamma, epsilon)
    return y, rstd, total


def _rotated(x: Tensor, mode: str) -> Tensor:
    if mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)
    if mode == "interleave":
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    raise ValueError(f"rotary_mode must be 'half' or 'interleave' on the simulated device, got {mode!r}")


def _rotary_mul(x: Tensor, cosine: Tensor, sine: Tensor, mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    """x with its pairs turned by the angles: x * cosine + rotated x * sine."""
    if rotate is not None:
        raise NotImplementedError("npu_rotary_mul: rotate is not modelled on the simulated device, it must be None")
    return (x.float() * cosine.float() + _rotated(x, mode).float() * sine.float()).to(x.dtype)


def _rotary_mul_backward(grad: Tensor, x: Tensor, cosine: Tensor, sine: Tensor, mode: str = "half"):
    return tuple(vjp(lambda *inputs: _rotary_mul(*inputs, mode), (x, cosine, sine), grad))


def _fast_gelu(x: Tensor) -> Tensor:
    """The sigmoid's approximation of gelu."""
    return x * torch.sigmoid(1.702 * x)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    return torch.ops.aten.gelu_backward(grad, x, approximate=approximate)


def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor):
    return tuple(vjp(F.linear, (x, weight), grad))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "npu::npu_dtype_cast": _cast,
    "npu::_npu_dtype_cast": _cast,
    "npu::npu_dtype_cast_backward": _cast,
    "npu::_npu_dtype_cast_backward": _cast,
    "npu::npu_dtype_cast_": lambda x, source: x.copy_(source),
    "npu::one_": lambda x: x.fill_(1),
    "npu::_amp_foreach_non_finite_check": lambda grads: not all(bool(g.isfinite().all()) for g in grads),
    "npu::npu_alloc_float_status": lambda x: torch.zeros(8),
    "npu::npu_get_float_status": lambda x, mode=0: torch.zeros(8),
    "npu::npu_clear_float_status": lambda x, mode=0: torch.zeros(8),
    "npu::npu_rms_norm": _rms_norm,
    "npu::npu_rms_norm_backward": _rms_norm_backward,
    "npu::npu_add_rms_norm": _add_rms_norm,
    "npu::npu_rotary_mul": _rotary_mul,
    "npu::npu_rotary_mul_backward": _rotary_mul_backward,
    "npu::npu_fast_gelu": _fast_gelu,
    "npu::fast_gelu": _fast_gelu,
    "npu::npu_fast_gelu_backward": lambda grad, x: vjp(_fast_gelu, (x,), grad)[0],
    "npu::npu_gelu": _gelu,
    "npu::npu_gelu_backward": _gelu_backward,
    "npu::npu_silu": F.silu,
    "npu::npu_silu_": lambda x: F.silu(x, inplace=True),
    "npu::npu_silu_backward": lambda grad, x, y: torch.ops.aten.silu_backward(grad, x),
    "npu::npu_linear": F.linear,
    "npu::npu_linear_backward": _linear_backward,
}
