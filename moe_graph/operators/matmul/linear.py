"""`npu_linear(input, weight, bias=None)`: input @ weight.T + bias. And its gradient.

Source: the operator's page in the torch_npu documentation.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.gradients import vjp


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear."""
    return F.linear(x, weight, bias)


def linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Gradients of x and weight."""
    return tuple(vjp(F.linear, (x, weight), grad))


OPERATOR = of_torch_npu("npu_linear", linear)
BACKWARD_OPERATOR = of_torch_npu("npu_linear_backward", linear_backward)
