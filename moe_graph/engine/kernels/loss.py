"""Losses and their gradients. Reductions are "none", "mean" and "sum"."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import listed

aten = torch.ops.aten
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def _reduction(name: str) -> int:
    if name not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {name!r}")
    return _REDUCTIONS[name]


@kernel("MseLoss")
def mse_loss(predict: Tensor, label: Tensor, *, reduction: str = "mean") -> Tensor:
    """GE MseLoss: the square of predict - label, reduced."""
    return listed(torch.ops.aten.mse_loss.default)(predict, label, _reduction(reduction))


@kernel("MseLossGrad")
def mse_loss_grad(predict: Tensor, label: Tensor, dout: Tensor, *, reduction: str = "mean") -> Tensor:
    """GE MseLossGrad: gradient of MseLoss's predict; dout is the gradient of its result."""
    return listed(torch.ops.aten.mse_loss_backward.default)(dout, predict, label, _reduction(reduction))


def _check_target(x: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The classes as torch takes them. Raises ValueError for one that x has not."""
    count, target = x.shape[0 if x.dim() == 1 else 1], target.long()
    if bool((((target < 0) | (target >= count)) & (target != ignore_index)).any()):
        raise ValueError(f"target must be from 0 to {count - 1} or ignore_index {ignore_index}, got {target.tolist()}")
    return target


@kernel("NLLLoss")
def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean", ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """GE NLLLoss: -weight[target] * x[target] of each row of x [N, C], of x [C] or of each place of x [N, C, H, W], reduced; and the
    sum of these weights, with reduction "none" too.

    What has the target ignore_index has weight 0. "mean" divides by the sum of the weights. Source: the document of NLLLoss (ops-nn).
    """
    target = _check_target(x, target, ignore_index)
    forward = listed((aten.nll_loss2d_forward if x.dim() > 2 else aten.nll_loss_forward).default)
    y, total = forward(x, target, weight, _reduction(reduction), ignore_index)
    if reduction == "none":
        counted = target[target != ignore_index]
        weights = torch.ones(len(counted)) if weight is None else weight.float()[counted]
        total = weights.sum().to(x.dtype)
    return y, total


@kernel("NLLLossGrad")
def nll_loss_grad(
    x: Tensor,
    y_grad: Tensor,
    target: Tensor,
    weight: Tensor,
    total_weight: Tensor,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """GE NLLLossGrad: gradient of NLLLoss's x: -weight * y_grad at each target, for "mean" divided by total_weight."""
    target = _check_target(x, target, ignore_index)
    backward = listed((aten.nll_loss2d_backward if x.dim() > 2 else aten.nll_loss_backward).default)
    y_grad = y_grad.reshape(target.shape) if reduction == "none" else y_grad.reshape(())
    return backward(y_grad, x, target, weight, _reduction(reduction), ignore_index, total_weight.reshape(()))
