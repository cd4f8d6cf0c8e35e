"""Gradients of batch and group normalisation, and the pieces of a batch normalisation over several devices.

Source: the documents of BatchNormGradV3, GroupNormGrad, GroupNormV2, SyncBatchNormBackwardReduce and SyncBatchNormBackwardElemt
(ops-nn, norm). Statistics are float32, sums are in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import in_float32, listed

aten = torch.ops.aten
_ALL = [True, True, True]


@kernel("BatchNormGradV3")
def batch_norm_grad_v3(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    save_mean: Tensor,
    save_rstd: Tensor,
    *,
    is_training: bool = True,
    epsilon: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE BatchNormGradV3: gradients of x, weight and bias: through the batch's own statistics, save_mean and save_rstd, or, not
    training, by the running ones."""
    dx, *others = listed(aten.native_batch_norm_backward.default)(
        dy, x, weight, running_mean, running_var, save_mean, save_rstd, is_training, epsilon, _ALL
    )
    return dx, *(gradient.to(weight.dtype) for gradient in others)


@kernel("GroupNormV2")
def group_norm_v2(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    num_groups: int,
    data_format: str = "NHWC",
    eps: float = 1e-5,
    is_training: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE GroupNormV2: y, and the mean and rstd [N, num_groups] of each group of channels.

    data_format is torchair's default; the layout is that of the descriptors, channels second. Not training is not modelled.
    """
    if not is_training:
        raise NotImplementedError("is_training=False is not modelled")
    count, channels = x.shape[:2]
    size = x[0, 0].numel() if count * channels else x.shape[2:].numel()
    return listed(aten.native_group_norm.default)(x, gamma, beta, count, channels, size, num_groups, eps)


@kernel("GroupNormGrad")
def group_norm_grad(
    dy: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    gamma: Tensor,
    *,
    num_groups: int,
    data_format: str = "NCHW",
    dx_is_require: bool = True,
    dgamma_is_require: bool = True,
    dbeta_is_require: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE GroupNormGrad: gradients of x, gamma and beta. What is not required is given as well: a device leaves it open."""
    if data_format != "NCHW":
        raise NotImplementedError(f"data_format must be NCHW, got {data_format!r}")
    sizes = (*x.shape[:2], x.shape[2:].numel())
    mean, rstd = mean.contiguous(), rstd.contiguous()  # torch's kernel reads them as if they were
    return listed(aten.native_group_norm_backward.default)(dy, x, mean, rstd, gamma, *sizes, num_groups, _ALL)


@kernel("SyncBatchNormBackwardReduce")
@in_float32
def sync_batch_norm_backward_reduce(
    sum_dy: Tensor, sum_dy_dx_pad: Tensor, mean: Tensor, invert_std: Tensor
) -> tuple[Tensor, Tensor]:
    """GE SyncBatchNormBackwardReduce: sum_dy_dx_pad - sum_dy * mean, the sum of dy * (x - mean); and it times invert_std, the
    weight's gradient."""
    sum_dy_xmu = sum_dy_dx_pad - sum_dy * mean
    return sum_dy_xmu, sum_dy_xmu * invert_std


@kernel("SyncBatchNormBackwardElemt")
@in_float32
def sync_batch_norm_backward_elemt(
    grad_output: Tensor,
    save_input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    mean_dy: Tensor,
    mean_dy_xmu: Tensor,
) -> Tensor:
    """GE SyncBatchNormBackwardElemt: (grad_output - mean_dy - (x - mean) * invstd^2 * mean_dy_xmu) * invstd * weight."""
    return (grad_output - mean_dy - (save_input - mean) * (invstd.square() * mean_dy_xmu)) * invstd * weight
