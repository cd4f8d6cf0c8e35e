"""`npu_gelu(self, approximate)`, by erf ("none") or tanh ("tanh"); and `npu_fast_gelu`, x * sigmoid(1.702 x). With their gradients.

Source: the operators' pages in the torch_npu documentation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed
from moe_graph.operators.gradients import vjp


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """torch's gelu."""
    return F.gelu(x, approximate=approximate)


def gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """The gradient of x."""
    return torch.ops.aten.gelu_backward(grad, x, approximate=approximate)


def fast_gelu(x: Tensor) -> Tensor:
    """The sigmoid's approximation of gelu."""
    wide = x.float()
    return (wide * torch.sigmoid(1.702 * wide)).to(x.dtype)


def fast_gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of x."""
    return vjp(fast_gelu, (x.float(),), grad.float())[0].to(x.dtype)


OPERATOR = of_torch_npu("npu_gelu", gelu)
BACKWARD_OPERATOR = of_torch_npu("npu_gelu_backward", gelu_backward)
FAST_OPERATOR = of_torch_npu("npu_fast_gelu", fast_gelu, ge=[GeKernel("FastGelu", renamed(fast_gelu))])
FAST_OPERATOR_OLD_NAME = of_torch_npu("fast_gelu", fast_gelu)
FAST_BACKWARD_OPERATOR = of_torch_npu(
    "npu_fast_gelu_backward", fast_gelu_backward, ge=[GeKernel("FastGeluGrad", renamed(fast_gelu_backward, dy="grad"))]
)
