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
