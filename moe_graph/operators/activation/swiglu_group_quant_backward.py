"""`npu_swiglu_group_quant_backward(grad_y, x, *, weight, y_origin, group_index, clamp_limit)`: gradients of swiglu with weighted rows.

    x [..., 2H], grad_y [..., H] floating point   weight [..., 1] float32, the factor of each row, with y_origin [..., H], swiglu's result
    -> grad_x like x, grad_weight like weight: sum of grad_y * y_origin; without weight [0] float32
    A, B        the halves of x, A from above and B from both sides clamped by clamp_limit, if that is not 0: what is clamped has gradient 0
    group_index [G]: how many rows each group has; rows beyond them have gradient 0

Source: the reference function of op-plugin's test; torch_npu's fake implementation. Float32 inside, rounded once. torchair has no
converter. The operator that it is the gradient of, npu_swiglu_group_quant, has no document and is not served.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_swiglu_group_quant_backward")


def swiglu_group_quant_backward(
    grad_y: Tensor,
    x: Tensor,
    *,
    weight: Tensor | None = None,
    y_origin: Tensor | None = None,
    group_index: Tensor | None = None,
    clamp_limit: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """grad_x and grad_weight, as the module's document says. Raises ValueError for shapes that do not fit."""
    half = [*x.shape[:-1], x.shape[-1] // 2]
    _check.size(x.shape[-1] % 2 == 0, "x", "of an even last size", x)
    _check.size(list(grad_y.shape) == half, "grad_y", f"of shape {half}", grad_y)
    grad = grad_y.float()
    used = torch.ones(half[:-1], dtype=torch.bool)
    if group_index is not None:
        used = (torch.arange(used.numel()) < group_index.sum()).view(half[:-1])
    grad = grad.masked_fill(~used.unsqueeze(-1), 0)
    grad_weight = x.new_empty(0, dtype=torch.float32)
    if weight is not None:
        if y_origin is None:
            _check.refuse("y_origin", "given with weight", None)
        _check.size(list(y_origin.shape) == half, "y_origin", f"of shape {half}", y_origin)
        _check.size(list(weight.shape) == [*half[:-1], 1], "weight", f"of shape {[*half[:-1], 1]}", weight)
        grad_weight = (grad * y_origin.float()).sum(-1, keepdim=True).to(weight.dtype)
        grad = grad * weight.float()
    gate, linear = x.float().chunk(2, -1)
    a = gate.clamp(max=clamp_limit) if clamp_limit else gate
    b = linear.clamp(-clamp_limit, clamp_limit) if clamp_limit else linear
    sigmoid = torch.sigmoid(a)
    of_gate, of_linear = grad * b * sigmoid * (1 + a * (1 - sigmoid)), grad * a * sigmoid
    if clamp_limit:
        of_gate = of_gate.masked_fill(gate >= clamp_limit, 0)
        of_linear = of_linear.masked_fill(linear.abs() >= clamp_limit, 0)
    return torch.cat((of_gate, of_linear), -1).to(x.dtype), grad_weight


OPERATOR = of_torch_npu("npu_swiglu_group_quant_backward", swiglu_group_quant_backward)
