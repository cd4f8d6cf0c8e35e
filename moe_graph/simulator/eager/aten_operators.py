"""Operators of aten, and gradients of theirs that torch_npu declares, which the CPU has no kernel for: on CPU tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_graph.operators import fourier, rounding
from moe_graph.operators.gradients import vjp
from moe_graph.operators.quantization.quantize import along, divided
from moe_graph.simulator.eager.quantized import WHOLE

_REDUCTIONS = ("none", "mean", "sum")


def _matmul_backward(grad: Tensor, left: Tensor, right: Tensor, mask: list[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of matmul(left, right); vectors and broadcast batches as matmul takes them."""
    return tuple(vjp(torch.matmul, (left, right), grad, mask))


def _fused_rms_norm_backward(grad, x, shape, rstd, weight, mask):
    return tuple(vjp(lambda a, w: F.rms_norm(a, shape, w, _epsilon(x, shape, rstd)), (x, weight), grad, mask))


def _epsilon(x: Tensor, shape: list[int], rstd: Tensor) -> float:
    """The epsilon that RMS normalization has used, told by its 1 / sqrt(mean of squares + epsilon)."""
    if not x.numel():
        return 0.0
    mean = x.double().square().mean(tuple(range(-len(shape), 0)), keepdim=True)
    return max(float((rstd.double().reshape(mean.shape) ** -2 - mean).median()), 0.0)


def _mm_dtype(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return left.to(dtype) @ right.to(dtype)


def _addmm_dtype(x: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype, *, beta=1, alpha=1) -> Tensor:
    return beta * x.to(dtype) + alpha * (left.to(dtype) @ right.to(dtype))


def _histc(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:  # noqa: A002
    """Devices count whole numbers, too; the CPU's kernel does not."""
    return torch.histc(x if x.is_floating_point() else x.double(), bins, min, max).to(x.dtype)


def _into(function: Callable[..., Tensor], name: str = "out") -> Callable[..., Tensor]:
    """The out= form of a function; `name`: what the argument that is written to is called."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        out = kwargs.pop(name)
        result = function(*args, **kwargs)
        return out.resize_(result.shape).copy_(result)

    return call


def _quantize_per_tensor(x: Tensor, scales: Tensor, zero_points: Tensor, dtype: torch.dtype) -> Tensor:
    """What aclnnQuantize writes for torch.quantize_per_tensor. scales, zero_points: [1]."""
    return divided(x, scales, zero_points, WHOLE[dtype])


def _quantize_per_channel(x: Tensor, scales: Tensor, zero_points: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """What aclnnQuantize writes for torch.quantize_per_channel. scales, zero_points: [n] along `axis`."""
    return divided(x, along(scales, x, axis), along(zero_points, x, axis), WHOLE[dtype])


def _channels(x: Tensor) -> tuple[list[int], list[int]]:
    """(all dimensions but the channels', the shape that lays a row of channels along x)."""
    return [i for i in range(x.dim()) if i != 1], [1, -1] + [1] * (x.dim() - 2)


def _batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    others, _ = _channels(x)
    wide = x.float()
    return wide.mean(others), (wide.var(others, correction=0) + eps).rsqrt()


def _batch_norm_elemt(x, weight, bias, mean, invstd, eps):
    _, row = _channels(x)
    y = (x.float() - mean.view(row)) * invstd.view(row)
    y = y if weight is None else y * weight.view(row)
    return (y if bias is None else y + bias.view(row)).to(x.dtype)


def _batch_norm_gather(x, mean, invstd, running_mean, running_var, momentum, eps, counts):
    """mean, invstd: [ranks, channels], counts: [ranks]. The statistics of all, and the running ones moved on in place."""
    share = counts.to(mean.dtype).view(-1, 1)
    total = share.sum()
    whole = (mean * share).sum(0) / total
    variance = ((invstd**-2 - eps + (mean - whole) ** 2) * share).sum(0) / total
    if running_mean is not None:
        running_mean.lerp_(whole.to(running_mean.dtype), momentum)
    if running_var is not None:
        running_var.lerp_((variance * total / (total - 1)).to(running_var.dtype), momentum)
    return whole, (variance + eps).rsqrt()


def _batch_norm_backward_reduce(grad, x, mean, invstd, weight, input_g, weight_g, bias_g):
    others, row = _channels(x)
    grad = grad.float()
    total = grad.sum(others)
    product = (grad * (x.float() - mean.view(row))).sum(others)
    return (total, product, product * invstd if weight_g else None, total if bias_g else None)


def _batch_norm_backward_elemt(grad, x, mean, invstd, weight, total, product, count):
    _, row = _channels(x)
    share = count.sum().to(total.dtype)
    factor = invstd if weight is None else invstd * weight
    centred = grad.float() - (total / share).view(row)
    centred = centred - (x.float() - mean.view(row)) * (product / share * invstd**2).view(row)
    return (centred * factor.view(row)).to(grad.dtype)


def _l1_loss_backward(grad, x, target, reduction):
    return vjp(lambda a: F.l1_loss(a, target, reduction=_REDUCTIONS[reduction]), (x,), grad)[0]


def _kl_div_backward(grad, x, target, reduction=1, *, log_target=False):
    return vjp(lambda a: _kl_div(a, target, reduction, log_target), (x,), grad)[0]


def _kl_div_target_backward(grad, x, target, reduction=1, *, log_target=False):
    return vjp(lambda t: _kl_div(x, t, reduction, log_target), (target,), grad)[0]


def _kl_div(x: Tensor, target: Tensor, reduction: int, log_target: bool) -> Tensor:
    return F.kl_div(x, target, reduction=_REDUCTIONS[reduction], log_target=log_target)


def _repeat_interleave_backward(grad, x, repeats, dim=None):
    return vjp(lambda a: a.repeat_interleave(repeats, dim), (x,), grad)[0]


def _stft_backward(
    grad, x, n_fft, hop_length=None, win_length=None, window=None, normalized=False, onesided=None, return_complex=None
):
    def forward(a):
        return torch.ops.aten.stft(a, n_fft, hop_length, win_length, window, normalized, onesided, return_complex)

    return vjp(forward, (x,), grad)[0]


_TRANSFORMS = {
    "_fft_r2c": fourier.of_nothing_too(torch.ops.aten._fft_r2c.default),
    "_fft_c2r": fourier.of_nothing_too(torch.ops.aten._fft_c2r.default),
    "_fft_c2c": fourier.of_nothing_too(torch.ops.aten._fft_c2c.default),
    "stft": fourier.of_nothing_too(torch.ops.aten.stft.default),
    "stft.center": fourier.of_nothing_too(torch.ops.aten.stft.center),
}


def _fft_c2r_backward(grad, dim, normalization):
    # Half of the spectrum stands for the whole: what is not its own mirror image counts twice.
    spectrum = torch.ops.aten._fft_r2c(grad, dim, normalization, True)
    doubled = grad.shape[dim[-1]] - spectrum.shape[dim[-1]]
    if doubled > 0:
        spectrum.narrow(dim[-1], 1, doubled).mul_(2)
    return spectrum


def _fft_r2c_backward(grad, dim, normalization, onesided, last_dim_size):
    if not onesided:
        return torch.real(torch.ops.aten._fft_c2c(grad, dim, normalization, False))
    shape = list(grad.shape)
    shape[dim[-1]] = last_dim_size
    zero = torch.zeros(shape, dtype=grad.real.dtype, device=grad.device)
    return vjp(lambda a: torch.ops.aten._fft_r2c(a, dim, normalization, True), (zero,), grad)[0]


def _conv_dilated2d_backward(grad, x, weight, kernel_size, stride, padding, dilation, mask):
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], 1, mask
    )


def _conv_transpose2d_backward(grad, x, weight, kernel_size, stride, padding, output_padding, dilation, mask):
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[1]], stride, padding, dilation, True, output_padding, 1, mask
    )


def _renorm_backward(grad, x, p, dim, maxnorm):
    return vjp(lambda a: torch.renorm(a, p, dim, maxnorm), (x,), grad)[0]


def _gather_backward(grad, size, dim, index, sparse_grad):
    return torch.zeros(size, dtype=grad.dtype).scatter_add_(dim, index, grad)


def _bce_with_logits_backward(grad, x, target, weight, pos_weight, reduction):
    def forward(a):
        return F.binary_cross_entropy_with_logits(
            a, target, weight, reduction=_REDUCTIONS[reduction], pos_weight=pos_weight
        )

    return vjp(forward, (x,), grad)[0]


def _matmul_double_backward(grad_left, grad_right, grad_out, left, right, mask):
    """Gradients of matmul's gradients, (of grad_out, of left, of right), for the gradients of those of left and right."""
    zero = torch.zeros((), dtype=grad_out.dtype)
    out = zero.expand(grad_out.shape).clone()
    for_left, for_right = torch.zeros_like(left), torch.zeros_like(right)
    if grad_left is not None:
        out = out + torch.matmul(grad_left, right)
        for_right = for_right + vjp(torch.matmul, (grad_left, right), grad_out)[1]
    if grad_right is not None:
        out = out + torch.matmul(left, grad_right)
        for_left = for_left + vjp(torch.matmul, (left, grad_right), grad_out)[0]
    return out, for_left, for_right


def _lstm_cell(input_gates, hidden_gates, cell, input_bias=None, hidden_bias=None):
    """Gates [B, 4H] in the order input, forget, cell, output; (hidden, cell, the activated gates, which the gradient wants)."""
    gates = input_gates + hidden_gates
    for bias in (input_bias, hidden_bias):
        gates = gates if bias is None else gates + bias
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    moved = f * cell + i * g
    return o * moved.tanh(), moved, torch.cat([i, f, g, o], 1)


def _lstm_cell_backward(grad_hidden, grad_cell, cell, moved, activated, has_bias):
    """Gradients of the gates [B, 4H], of the cell before and of a bias, for those of the hidden state and of the cell after."""
    i, f, g, o = activated.chunk(4, 1)
    through = torch.zeros_like(moved) if grad_cell is None else grad_cell
    grad_o = torch.zeros_like(moved)
    if grad_hidden is not None:
        wide = moved.tanh()
        grad_o = grad_hidden * wide
        through = through + grad_hidden * o * (1 - wide * wide)
    gates = torch.cat(
        [
            through * g * i * (1 - i),
            through * cell * f * (1 - f),
            through * i * (1 - g * g),
            grad_o * o * (1 - o),
        ],
        1,
    )
    return gates, through * f, gates.sum(0) if has_bias else None


_log_softmax = functools.partial(rounding.softmax, logarithm=True)


def _renorm(x: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """p = 0 counts what is not 0, as op-plugin's test has it; the CPU's kernel refuses it."""
    if p:
        return torch.renorm(x, p, dim, maxnorm)
    count = x.count_nonzero([d for d in range(x.dim()) if d != dim % x.dim()])
    factor = torch.where(count > maxnorm, maxnorm / (count + 1e-7), 1.0)
    return (x * factor.view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])).to(x.dtype)


def _cdist_backward(grad: Tensor, x1: Tensor, x2: Tensor, p: float, distance: Tensor) -> Tensor:
    """Of p = inf all elements count that reach the distance, which may have been rounded; the CPU's kernel wants them equal to it."""
    if p != float("inf"):
        return torch.ops.aten._cdist_backward(grad, x1, x2, p, distance)
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    reached = (difference.abs() >= distance.unsqueeze(-1)) & (distance != 0).unsqueeze(-1)
    return (grad.unsqueeze(-1) * difference.sign() * reached).sum(-2)


def _in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The form of a function that changes its first argument."""

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x.copy_(function(x, *args, **kwargs))

    return call


def _native_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps):
    """Not training a device returns statistics [C], as the meta kernel says: those it has normalized by; the CPU's are empty."""
    y, mean, invstd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)
    if not training:
        mean, invstd = running_mean.clone(), (running_var + eps).rsqrt()
    return y, mean, invstd


def _conv_depthwise2d(x, weight, kernel_size, bias, stride, padding, dilation):
    return torch.conv2d(x, weight, bias, stride, padding, dilation, weight.shape[0])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "aten::_lazy_clone": lambda x: x.clone(),  # memory that is copied at the first write is a matter of the CPU's
    "aten::matmul_backward": _matmul_backward,
    "aten::_softmax": rounding.softmax,
    "aten::_softmax.out": _into(rounding.softmax),
    "aten::_log_softmax": _log_softmax,
    "aten::_log_softmax.out": _into(_log_softmax),
    "aten::renorm": _renorm,
    "aten::renorm.out": _into(_renorm),
    "aten::renorm_": _in_place(_renorm),
    "aten::_cdist_backward": _cdist_backward,
    "aten::native_batch_norm": _native_batch_norm,
    "aten::_native_batch_norm_legit": _native_batch_norm,
    "aten::_fused_rms_norm_backward": _fused_rms_norm_backward,
    "aten::_masked_scale": lambda x, mask, scale: x * mask.to(x.dtype) * scale,
    "aten::histc": _histc,
    "aten::histc.out": _into(_histc),
    "aten::mm.dtype": _mm_dtype,
    "aten::mm.dtype_out": _into(_mm_dtype),
    "aten::bmm.dtype": _mm_dtype,
    "aten::bmm.dtype_out": _into(_mm_dtype),
    "aten::addmm.dtype": _addmm_dtype,
    "aten::addmm.dtype_out": _into(_addmm_dtype),
    "aten::baddbmm.dtype": _addmm_dtype,
    "aten::baddbmm.dtype_out": _into(_addmm_dtype),
    "aten::batch_norm_stats": _batch_norm_stats,
    "aten::batch_norm_elemt": _batch_norm_elemt,
    "aten::batch_norm_elemt.out": _into(_batch_norm_elemt),
    "aten::batch_norm_gather_stats_with_counts": _batch_norm_gather,
    "aten::batch_norm_backward_reduce": _batch_norm_backward_reduce,
    "aten::batch_norm_backward_elemt": _batch_norm_backward_elemt,
    "aten::_thnn_fused_lstm_cell": _lstm_cell,
    "aten::_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
    **{f"aten::{name}": transform for name, transform in _TRANSFORMS.items()},
    **{f"aten::{name}.out": _into(transform) for name, transform in _TRANSFORMS.items() if name.startswith("_fft")},
    "aten::_conv_depthwise2d": _conv_depthwise2d,
    "aten::_conv_depthwise2d.out": _into(_conv_depthwise2d),
    "npu::_quantize_per_tensor_impl.out": _into(_quantize_per_tensor, "result"),
    "npu::_quantize_per_channel_impl.out": _into(_quantize_per_channel, "result"),
    "npu::matmul_double_backward": _matmul_double_backward,
    "npu::l1_loss_backward": _l1_loss_backward,
    "npu::kl_div_backward": _kl_div_backward,
    "npu::kl_div_target_backward": _kl_div_target_backward,
    "npu::repeat_interleave_backward_int": _repeat_interleave_backward,
    "npu::repeat_interleave_backward_tensor": _repeat_interleave_backward,
    "npu::stft_backward": fourier.of_nothing_too(_stft_backward),
    "npu::fft_c2r_backward": fourier.of_nothing_too(_fft_c2r_backward),
    "npu::fft_r2c_backward": fourier.of_nothing_too(_fft_r2c_backward),
    "npu::slow_conv_dilated2d_backward": _conv_dilated2d_backward,
    "npu::slow_conv_transpose2d_backward": _conv_transpose2d_backward,
    "npu::npu_renorm_backward": _renorm_backward,
    "npu::npu_gather_backward": _gather_backward,
    "npu::npu_binary_cross_entropy_with_logits_backward": _bce_with_logits_backward,
}
