"""`npu_scaled_masked_softmax(x, mask, scale=1, fixed_triu_mask=False)`: softmax of scale * x, -10000 where mask is true; and its gradient.

    x [..., H, W] float16, bfloat16, float32, H and W multiples of 32 from 32 to 4096   mask bool, broadcast to x

A row of which all is masked is 1 / W in each place. Sources: the operator's page in the torch_npu documentation, the reference of
op-plugin's test. Float32 inside, rounded once. fixed_triu_mask must be False, as the page says. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_scaled_masked_softmax")
_MASKED = -10000.0
_STEP, _LARGEST = 32, 4096


def _checked(x: Tensor, mask: Tensor, fixed_triu_mask: bool) -> None:
    _check.value("fixed_triu_mask", fixed_triu_mask, (False,))
    _check.dtype("x", x, (torch.float16, torch.bfloat16, torch.float32))
    _check.dtype("mask", mask, (torch.bool,))
    fits = x.dim() >= 2 and all(size % _STEP == 0 and _STEP <= size <= _LARGEST for size in x.shape[-2:])
    _check.size(fits, "x", f"of [..., H, W], both multiples of {_STEP} from {_STEP} to {_LARGEST}", x)


def scaled_masked_softmax(x: Tensor, mask: Tensor, scale: float = 1, fixed_triu_mask: bool = False) -> Tensor:
    """The weights, like x. Raises ValueError for what the module's document excludes."""
    _checked(x, mask, fixed_triu_mask)
    return (x.float() * scale).masked_fill(mask, _MASKED).softmax(-1).to(x.dtype)


def scaled_masked_softmax_backward(
    y_grad: Tensor, y: Tensor, mask: Tensor, scale: float, fixed_triu_mask: bool
) -> Tensor:
    """The gradient of x: 0 where mask is true."""
    _checked(y, mask, fixed_triu_mask)
    wide, grad = y.float(), y_grad.float()
    through = wide * (grad - (grad * wide).sum(-1, keepdim=True))
    return (through * scale).masked_fill(mask, 0.0).to(y.dtype)


OPERATOR = of_torch_npu("npu_scaled_masked_softmax", scaled_masked_softmax)
BACKWARD_OPERATOR = of_torch_npu("npu_scaled_masked_softmax_backward", scaled_masked_softmax_backward)
