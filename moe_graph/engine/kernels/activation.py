"""Activations and their gradients. A gradient takes the gradient of the output, and the input or output that its formula needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import in_float32, listed, softmax

aten = torch.ops.aten


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
@in_float32
def swish(x: Tensor, *, scale: float = 1.0) -> Tensor:
    """GE Swish: x * sigmoid(scale * x)."""
    return torch.nn.functional.silu(x) if scale == 1.0 else x * torch.sigmoid(scale * x)


def _along(axes: Sequence[int], function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors, dimension), of several dimensions as of one that has the elements of all of them."""
    if len(axes) == 1:
        return function(*tensors, axes[0])
    rank = tensors[0].dim()
    last = range(rank - len(axes), rank)
    moved = [tensor.movedim(tuple(axes), tuple(last)) for tensor in tensors]
    result = function(*(tensor.flatten(last[0]) for tensor in moved), last[0])
    return result.unflatten(last[0], moved[0].shape[last[0] :]).movedim(tuple(last), tuple(axes))


@kernel("SoftmaxV2")
def softmax_v2(x: Tensor, *, axes: list = (-1,), half_to_float: bool = False) -> Tensor:
    """GE SoftmaxV2: softmax along these dimensions together; half_to_float computes and returns float32."""
    return _along(axes, functools.partial(softmax, half_to_float=half_to_float), x)


@kernel("SoftmaxGrad")
def softmax_grad(softmax: Tensor, grad_softmax: Tensor, *, axes: list = (-1,)) -> Tensor:
    """GE SoftmaxGrad: gradient of softmax along these dimensions together, of its output."""
    backward = listed(aten._softmax_backward_data.default)
    return _along(axes, lambda grad, y, axis: backward(grad, y, axis, y.dtype), grad_softmax, softmax)


@kernel("LogSoftmaxV2")
def log_softmax_v2(logits: Tensor, *, axes: list = (-1,)) -> Tensor:
    """GE LogSoftmaxV2: logarithm of softmax along these dimensions together."""
    return _along(axes, functools.partial(softmax, logarithm=True), logits)


@kernel("LogSoftmaxGrad")
def log_softmax_grad(grad: Tensor, x: Tensor, *, axis: list = (-1,)) -> Tensor:
    """GE LogSoftmaxGrad: gradient of log-softmax along these dimensions together; x is its output."""
    backward = listed(aten._log_softmax_backward_data.default)
    return _along(axis, lambda gradient, y, dimension: backward(gradient, y, dimension, y.dtype), grad, x)


@kernel("ReluGrad")
def relu_grad(gradients: Tensor, features: Tensor) -> Tensor:
    """GE ReluGrad: gradients where features are above 0."""
    return aten.threshold_backward(gradients, features, 0)


@kernel("SigmoidGrad")
def sigmoid_grad(y: Tensor, dy: Tensor, *, complex_conj: bool = False) -> Tensor:
    """GE SigmoidGrad: dy * y * (1 - y), y being the output. complex_conj matters to complex tensors alone."""
    return listed(aten.sigmoid_backward.default)(dy, y)


@kernel("TanhGrad")
def tanh_grad(y: Tensor, dy: Tensor, *, complex_conj: bool = False) -> Tensor:
    """GE TanhGrad: dy * (1 - y * y), y being the output. complex_conj matters to complex tensors alone."""
    return aten.tanh_backward(dy, y)


@kernel("Gelu")
def gelu(x: Tensor) -> Tensor:
    """GE Gelu: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the tangent's form (ops-nn, activation/gelu)."""
    return functional.gelu(x, approximate="tanh")


@kernel("GeluGrad")
def gelu_grad(dy: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """GE GeluGrad: gradient of Gelu at x, of the tangent's form (ops-nn, activation/gelu_grad). The output y is not needed."""
    return aten.gelu_backward(dy, x, approximate="tanh")


@kernel("GeluV2")
def gelu_v2(x: Tensor, *, approximate: str = "none") -> Tensor:
    """GE GeluV2: by the error function, or with approximate "tanh" by the tangent."""
    return functional.gelu(x, approximate=approximate)


@kernel("GeluGradV2")
def gelu_grad_v2(dy: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """GE GeluGradV2: gradient of GeluV2 at x."""
    return aten.gelu_backward(dy, x, approximate=approximate)


@kernel("SwishGrad")
@in_float32
def swish_grad(grad: Tensor, x: Tensor, y: Tensor, *, scale: float = 1.0) -> Tensor:
    """GE SwishGrad: gradient of x * sigmoid(scale * x) at x. The output y is not needed."""
    gate = torch.sigmoid(x * scale)
    return grad * (gate + x * scale * gate * (1 - gate))


@kernel("Elu")
def elu(x: Tensor, *, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """GE Elu: scale * x above 0, scale * alpha * (exp(input_scale * x) - 1) below."""
    return aten.elu(x, alpha, scale, input_scale)


@kernel("EluGradV2")
def elu_grad_v2(
    grads: Tensor,
    activations: Tensor,
    *,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
    is_result: bool = False,
) -> Tensor:
    """GE EluGradV2: gradient of Elu; activations are its output if is_result, else its input."""
    return aten.elu_backward(grads, alpha, scale, input_scale, is_result, activations)


@kernel("LeakyRelu")
def leaky_relu(x: Tensor, *, negative_slope: float = 0.0) -> Tensor:
    """GE LeakyRelu: x above 0, negative_slope * x below."""
    return functional.leaky_relu(x, negative_slope)


@kernel("LeakyReluGrad")
def leaky_relu_grad(gradients: Tensor, features: Tensor, *, negative_slope: float = 0.0) -> Tensor:
    """GE LeakyReluGrad: gradient of LeakyRelu at features."""
    return aten.leaky_relu_backward(gradients, features, negative_slope, False)


@kernel("HardSwish")
def hard_swish(x: Tensor) -> Tensor:
    """GE HardSwish: x * min(max(x + 3, 0), 6) / 6."""
    return functional.hardswish(x)


@kernel("HardSwishGrad")
def hard_swish_grad(grad: Tensor, x: Tensor) -> Tensor:
    """GE HardSwishGrad: gradient of HardSwish at x."""
    return aten.hardswish_backward(grad, x)


@kernel("HardSigmoid")
@in_float32
def hard_sigmoid(input_x: Tensor, *, alpha: float = 1 / 6, beta: float = 0.5) -> Tensor:
    """GE HardSigmoid: alpha * x + beta between 0 and 1; of whole numbers what is behind the point is cut off, as its document says."""
    if not input_x.is_floating_point():
        return (input_x * alpha + beta).clamp(0, 1).to(input_x.dtype)
    if beta == 0.5 and abs(alpha * 6 - 1) < 1e-6:
        return functional.hardsigmoid(input_x)
    return (input_x * alpha + beta).clamp(0, 1)


@kernel("HardSigmoidGrad")
@in_float32
def hard_sigmoid_grad(grads: Tensor, input_x: Tensor, *, alpha: float = 1 / 6, beta: float = 0.5) -> Tensor:
    """GE HardSigmoidGrad: alpha * grads where HardSigmoid is between its limits, else 0."""
    y = input_x * alpha + beta
    return torch.where((y > 0) & (y < 1), grads * alpha, torch.zeros_like(grads))


@kernel("HardtanhGrad")
def hardtanh_grad(result: Tensor, grad: Tensor, *, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """GE HardtanhGrad: grad where result is between its limits or no number, else 0; 0 at a limit itself.

    Source: the kernel (ops-nn, activation/hardtanh_grad); its document's formula lets a limit through.
    """
    return torch.where((result <= min_val) | (result >= max_val), torch.zeros_like(grad), grad)


@kernel("GLU")
def glu(x: Tensor, *, dim: int = -1) -> Tensor:
    """GE GLU: the first half of x along dim times the sigmoid of the second."""
    return functional.glu(x, dim)


@kernel("GLUGrad")
def glu_grad(y_grad: Tensor, x: Tensor, *, dim: int = -1) -> Tensor:
    """GE GLUGrad: gradient of GLU at x."""
    return listed(aten.glu_backward.default)(y_grad, x, dim)


@kernel("SoftplusV2")
def softplus_v2(x: Tensor, *, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """GE SoftplusV2: log(1 + exp(beta * x)) / beta, and x where beta * x is above threshold."""
    return functional.softplus(x, beta, threshold)


@kernel("Mish")
def mish(x: Tensor) -> Tensor:
    """GE Mish: x * tanh(log(1 + exp(x)))."""
    return functional.mish(x)


@kernel("ThresholdV2")
def threshold_v2(x: Tensor, threshold: Tensor, value: Tensor | None = None) -> Tensor:
    """GE ThresholdV2: value (0 if absent) where x is not above threshold, else x, also where x is no number; both have one element.

    Source: the kernel (ops-nn, activation/threshold_v2).
    """
    other = torch.zeros((), dtype=x.dtype) if value is None else value.reshape(()).to(x.dtype)
    return torch.where(x <= threshold.reshape(()), other, x)


@kernel("ThresholdGradV2D")
def threshold_grad_v2d(gradients: Tensor, features: Tensor, *, threshold: float) -> Tensor:
    """GE ThresholdGradV2D: 0 where features are not above threshold, else gradients."""
    return torch.where(features <= threshold, torch.zeros_like(gradients), gradients)


@kernel("LogSigmoid")
@in_float32
def log_sigmoid(x: Tensor) -> Tensor:
    """GE LogSigmoid: -log(1 + exp(-x))."""
    return functional.logsigmoid(x)


@kernel("LogSigmoidGrad")
@in_float32
def log_sigmoid_grad(grads: Tensor, features: Tensor) -> Tensor:
    """GE LogSigmoidGrad: grads / (1 + exp(features)), the gradient of LogSigmoid at features."""
    return grads * torch.sigmoid(-features)


def _slopes(weight: Tensor, x: Tensor) -> Tensor:
    """A slope for each channel, the second dimension; or what broadcasts to x."""
    if weight.dim() == 1 and weight.numel() > 1 and x.dim() > 2:
        return weight.reshape(-1, *[1] * (x.dim() - 2))
    return weight


@kernel("PRelu")
@in_float32
def p_relu(x: Tensor, weight: Tensor) -> Tensor:
    """GE PRelu: max(x, 0) + weight * min(x, 0). weight has one element, one for each channel, or broadcasts to x."""
    return torch.where(x > 0, x, _slopes(weight, x) * x)


@kernel("PReluGrad")
@in_float32
def p_relu_grad(grads: Tensor, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """GE PReluGrad: gradients of PRelu's x, which was features, and of its weight, of the shape of weights."""
    slopes = _slopes(weights, features)
    below = torch.where(features > 0, torch.zeros_like(grads), grads * features)
    dx = torch.where(features > 0, grads, grads * slopes)
    return dx, below.sum_to_size(slopes.shape).reshape(weights.shape)
