"""`npu_silu(self)`: x * sigmoid(x), out of place and in place. And its gradient.

Source: the operator's page in the torch_npu documentation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_graph.operators.declaration import of_torch_npu


def silu(x: Tensor) -> Tensor:
    """torch's silu."""
    return F.silu(x)


def silu_(x: Tensor) -> Tensor:
    """silu, written to x."""
    return F.silu(x, inplace=True)


def silu_backward(grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of x; y, silu's result, is not needed."""
    return torch.ops.aten.silu_backward(grad, x)


OPERATOR = of_torch_npu("npu_silu", silu)
IN_PLACE_OPERATOR = of_torch_npu("npu_silu_", silu_)
BACKWARD_OPERATOR = of_torch_npu("npu_silu_backward", silu_backward)
