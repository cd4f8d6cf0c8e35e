"""Losses and their gradients. Reductions are "none", "mean" and "sum"."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import listed

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


def _rows(x: Tensor) -> Tensor:
    """x [N, C], [C] or [N, C, H, W] as rows of C classes."""
    return x.reshape(1, -1) if x.dim() == 1 else x.movedim(1, -1).flatten(0, -2)


def _by_class(x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The class of each of N targets [N, 1], 0 where it is ignored, and its weight [N], 0 where it is ignored."""
    count = x.shape[0 if x.dim() == 1 else 1]
    target = target.reshape(-1).long()
    counts = target != ignore_index
    classes = torch.where(counts, target, 0)
    if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise ValueError(f"target must be from 0 to {count - 1} or ignore_index {ignore_index}, got {target.tolist()}")
    weights = torch.ones(len(target)) if weight is None else weight.float()[classes]
    return classes.unsqueeze(1), torch.where(counts, weights, 0.0)


@kernel("NLLLoss")
def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean", ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """GE NLLLoss: -weight[target] * x[target] of each row of x [N, C], of x [C] or of each place of x [N, C, H, W],
    reduced; and the sum of these weights.

    A row whose target is ignore_index has weight 0. "mean" divides by the sum of the weights. Source: the document of NLLLoss (ops-nn).
    """
    _reduction(reduction)
    classes, weights = _by_class(x, target, weight, ignore_index)
    rows = _rows(x).float().gather(1, classes).squeeze(1)
    losses, total = torch.where(weights == 0, 0.0, -rows * weights), weights.sum()
    if reduction == "none":
        return losses.reshape(target.shape).to(x.dtype), total.to(x.dtype)
    y = losses.sum() / total if reduction == "mean" else losses.sum()
    return y.to(x.dtype), total.to(x.dtype)


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
    """GE NLLLossGrad: gradient of NLLLoss's x: -weight * y_grad at the target of each row, for "mean" divided by total_weight."""
    _reduction(reduction)
    classes, weights = _by_class(x, target, weight, ignore_index)
    gradients = -y_grad.float().reshape(-1) * weights
    if reduction == "mean":
        gradients = gradients / total_weight.float().reshape(())
    rows = torch.zeros(_rows(x).shape).scatter(1, classes, gradients.unsqueeze(1))
    result = rows if x.dim() == 1 else rows.unflatten(0, (x.shape[0], *x.shape[2:])).movedim(-1, 1)
    return result.reshape(x.shape).to(x.dtype)
