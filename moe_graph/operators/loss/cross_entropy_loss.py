"""`npu_cross_entropy_loss(input, target, weight=None, reduction="mean", ...)`: the cross entropy of logits; and its gradient.

    input [N, C] float16, bfloat16, float32: logits   target [N] int64 from 0 to C - 1   weight [C] float32, of the classes
    reduction none, sum, mean: by the sum of the targets' weights   ignore_index: a target that counts 0, none if negative
    label_smoothing [0, 1): the share of the mean over all classes
    -> loss [N] or, reduced, [1], and log_prob [N, C], the logarithm of the softmax, like input; two of no elements

Sources: the operator's page in the torch_npu documentation, the golden function of op-plugin's test. Float32 inside, rounded once. Not
served, as the page does not: lse_square_scale_for_zloss, return_zloss. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_cross_entropy_loss")


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
    return_zloss: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four results, as the module's document says. Raises ValueError on arguments that it excludes."""
    if lse_square_scale_for_zloss or return_zloss:
        raise NotImplementedError("npu_cross_entropy_loss: lse_square_scale_for_zloss and return_zloss are not served")
    _check.dtype("input", logits, (torch.float16, torch.bfloat16, torch.float32))
    _check.rank("input", logits, (2,), "[N, C]")
    _check.dtype("target", target, (torch.int64,))
    _check.value("reduction", reduction, ("mean", "sum", "none"))
    count, classes = logits.shape
    if tuple(target.shape) != (count,) or bool(((target < 0) | (target >= classes)).any()):
        _check.refuse(
            "target", f"[{count}] from 0 to {classes - 1}", target.tolist() if count < 9 else tuple(target.shape)
        )
    if not 0 <= label_smoothing < 1:
        _check.refuse("label_smoothing", "from 0 to below 1", label_smoothing)
    if weight is not None and tuple(weight.shape) != (classes,):
        _check.refuse("weight", f"of shape [{classes}]", f"shape {tuple(weight.shape)}")
    log_prob = logits.float().log_softmax(-1)
    wide, of_target = _weights(target, weight, classes, ignore_index)
    own = -log_prob.gather(1, target[:, None]).squeeze(1) * of_target
    loss = (1 - label_smoothing) * own
    if label_smoothing:
        loss = loss + label_smoothing / classes * -(log_prob * wide).sum(-1) * (target != ignore_index)
    if reduction != "none":
        loss = loss.sum(0, keepdim=True) / (of_target.sum() if reduction == "mean" else 1)
    nothing = logits.new_empty(0)
    return loss.to(logits.dtype), log_prob.to(logits.dtype), nothing, nothing.clone()


def cross_entropy_loss_backward(
    grad_loss: Tensor,
    log_prob: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    grad_zloss: Tensor | None = None,
    lse_for_zloss: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale_for_zloss: float = 0.0,
) -> Tensor:
    """The gradient of input; those of the two results without elements have none."""
    classes = log_prob.shape[1]
    wide, of_target = _weights(target, weight, classes, ignore_index)
    probabilities = log_prob.float().exp()
    own = torch.nn.functional.one_hot(target, classes)
    of_logits = (1 - label_smoothing) * of_target[:, None] * (probabilities - own)
    if label_smoothing:
        smoothed = label_smoothing / classes * (probabilities * wide.sum() - wide)
        of_logits = of_logits + smoothed * (target != ignore_index)[:, None]
    grad = grad_loss.float().reshape(-1, 1)
    if reduction == "mean":
        grad = grad / of_target.sum()
    return (of_logits * grad).to(grad_loss.dtype)


def _weights(target: Tensor, weight: Tensor | None, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The classes' weights [C] and the targets' [N], 0 for those that are ignored."""
    wide = torch.ones(classes) if weight is None else weight.float()
    return wide, wide[target] * (target != ignore_index)


OPERATOR = of_torch_npu("npu_cross_entropy_loss", cross_entropy_loss)
BACKWARD_OPERATOR = of_torch_npu("npu_cross_entropy_loss_backward", cross_entropy_loss_backward)
