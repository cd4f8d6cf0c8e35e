"""`npu_mish(self)`: x * tanh(log(1 + exp(x))), float16, bfloat16, float32. And its gradient.

Source: the operator's page in the torch_npu documentation. Float32 inside, rounded once. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_graph.operators.declaration import of_torch_npu


def mish(x: Tensor) -> Tensor:
    """torch's mish."""
    return F.mish(x.float()).to(x.dtype)


def mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of x."""
    return torch.ops.aten.mish_backward(grad.float(), x.float()).to(x.dtype)


OPERATOR = of_torch_npu("npu_mish", mish)
BACKWARD_OPERATOR = of_torch_npu("npu_mish_backward", mish_backward)
