"""Batch, group and layer normalisation and their gradients. Channels are the second dimension, as the descriptors' layout says.

"variance" is the biased variance of the elements; "rstd" is 1 / sqrt(variance + epsilon).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import in_float32, listed

if TYPE_CHECKING:
    from moe_graph.engine.graph import Node

aten = torch.ops.aten


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """[C] (or a shape of C elements) as [1, C, 1, ...] beside a tensor [N, C, ...]"""
    return values.reshape(1, -1, *[1] * (like.dim() - 2))


def _all_but_channels(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def _described(node: Node | None, *values: Tensor) -> Iterator[Tensor]:
    """The last outputs of a node in the types that the graph describes; a device's are float32."""
    described = [output.type for output in node.outputs[-len(values) :]] if node else [None] * len(values)
    return (value if kind is None else value.to(kind.torch) for value, kind in zip(values, described))


def _rstd(variance: Tensor, epsilon: float) -> Tensor:
    return torch.rsqrt(variance.float() + epsilon)


@kernel("BatchNormV3")
def batch_norm_v3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    is_training: bool = True,
    node: Node | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """GE BatchNormV3: y, the running mean and variance moved on by momentum, and the batch's mean and rstd.

    Not training it normalises by the running values and leaves them.
    """
    new_mean, new_var = running_mean.clone(), running_var.clone()
    y, save_mean, save_rstd = listed(aten.native_batch_norm.default)(
        x, weight, bias, new_mean, new_var, is_training, momentum, epsilon
    )
    return y, *_described(node, new_mean, new_var, save_mean, save_rstd)


@kernel("BNInfer")
def bn_infer(x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float) -> Tensor:
    """GE BNInfer: (x - mean) * rstd * scale + offset, per channel."""
    factor = scale.float() * _rstd(variance, epsilon)
    shift = offset.float() - mean.float() * factor
    return (x.float() * _per_channel(factor, x) + _per_channel(shift, x)).to(x.dtype)


@kernel("BNInferGrad")
def bn_infer_grad(grads: Tensor, scale: Tensor, batch_variance: Tensor, *, epsilon: float = 0.0001) -> Tensor:
    """GE BNInferGrad: gradient of BNInfer's x."""
    return (grads.float() * _per_channel(scale.float() * _rstd(batch_variance, epsilon), grads)).to(grads.dtype)


@kernel("BNTrainingUpdateGrad", "BN3DTrainingUpdateGrad")
def bn_training_update_grad(
    grads: Tensor,
    x: Tensor,
    batch_mean: Tensor,
    batch_variance: Tensor,
    *,
    epsilon: float = 0.0001,
    node: Node | None = None,
) -> tuple[Tensor, ...]:
    """GE BNTrainingUpdateGrad, BN3DTrainingUpdateGrad: gradients of scale and offset, per channel, of the shape of batch_mean."""
    normalised = (x.float() - _per_channel(batch_mean, x)) * _per_channel(_rstd(batch_variance, epsilon), x)
    others = _all_but_channels(x)
    diff_scale = (grads.float() * normalised).sum(others).view(batch_mean.shape)
    return tuple(_described(node, diff_scale, grads.float().sum(others).view(batch_mean.shape)))


@kernel("BNTrainingReduceGrad", "BN3DTrainingReduceGrad")
def bn_training_reduce_grad(
    grads: Tensor,
    x: Tensor,
    diff_scale: Tensor,
    diff_offset: Tensor,
    scale: Tensor,
    batch_mean: Tensor,
    batch_variance: Tensor,
    *,
    epsilon: float = 0.0001,
) -> Tensor:
    """GE BNTrainingReduceGrad, BN3DTrainingReduceGrad: gradient of x through the batch's own mean and variance."""
    count = x.numel() // max(1, x.shape[1])
    rstd = _per_channel(_rstd(batch_variance, epsilon), x)
    normalised = (x.float() - _per_channel(batch_mean, x)) * rstd
    inner = grads.float() - _per_channel(diff_offset, x) / count - normalised * _per_channel(diff_scale, x) / count
    return (inner * rstd * _per_channel(scale.float(), x)).to(x.dtype)


@kernel("GroupNorm")
def group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    num_groups: int,
    data_format: str = "NHWC",
    eps: float = 0.0001,
    is_training: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE GroupNorm: y, and the mean and variance [N, num_groups] of each group of channels.

    data_format is torchair's default; the layout is that of the descriptors, channels second. Not training is not modelled.
    """
    if not is_training:
        raise NotImplementedError("is_training=False is not modelled")
    groups = x.float().reshape(x.shape[0], num_groups, -1)
    variance, mean = torch.var_mean(groups, 2, correction=0)
    y = in_float32(torch.group_norm)(x, num_groups, gamma, beta, eps)
    return y, mean.to(x.dtype), variance.to(x.dtype)


@kernel("LayerNormV4")
def layer_norm_v4(
    x: Tensor,
    normalized_shape: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    node: Node,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE LayerNormV4: y, and the mean and rstd over the last dimensions, which have normalized_shape.

    Mean and rstd are float32 on a device; they are what the graph describes.
    """
    y, mean, rstd = listed(aten.native_layer_norm.default)(x, normalized_shape.tolist(), gamma, beta, epsilon)
    return y, *_described(node, mean, rstd)


@kernel("LayerNormGradV3")
def layer_norm_grad_v3(
    dy: Tensor, x: Tensor, rstd: Tensor, mean: Tensor, gamma: Tensor, *, node: Node | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """GE LayerNormGradV3: gradients of x, gamma and beta, the latter two in the type that the graph describes."""
    mask = [True, True, True]
    pd_x, pd_gamma, pd_beta = listed(aten.native_layer_norm_backward.default)(
        dy, x, gamma.shape, mean, rstd, gamma, torch.zeros_like(gamma), mask
    )
    return pd_x, *_described(node, pd_gamma, pd_beta)
