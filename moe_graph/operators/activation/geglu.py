"""`npu_geglu(self, dim=-1, approximate=1, activate_left=False)`: A * gelu(B) of the halves A, B along dim, and gelu(B). And its gradient.

    activate_left: gelu(A) * B, and gelu(A)   approximate 0: gelu by erf, 1: by tanh

Sources: the documents of aclnnGeGluV3 and aclnnGeGluV3Backward (ops-nn, activation/ge_glu_v2); op-plugin's C++. Float32 inside.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed


def _way(approximate: int) -> str:
    if approximate not in (0, 1):
        raise ValueError(f"approximate must be 0 (erf) or 1 (tanh), got {approximate}")
    return "tanh" if approximate else "none"


def geglu(x: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> tuple[Tensor, Tensor]:
    """(product, gelu), both of x's shape halved along dim."""
    left, right = x.float().chunk(2, dim)
    active, other = (left, right) if activate_left else (right, left)
    gelu = F.gelu(active, approximate=_way(approximate))
    return (gelu * other).to(x.dtype), gelu.to(x.dtype)


def geglu_grad(
    grad: Tensor, x: Tensor, gelu: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False
) -> Tensor:
    """The gradient of x; gelu is geglu's second result."""
    left, right = x.float().chunk(2, dim)
    active, other = (left, right) if activate_left else (right, left)
    wide = grad.float()
    through = torch.ops.aten.gelu_backward(wide * other, active, approximate=_way(approximate))
    parts = (through, wide * gelu.float())
    return torch.cat(parts if activate_left else parts[::-1], dim).to(x.dtype)


OPERATOR = of_torch_npu("npu_geglu", geglu, ge=[GeKernel("GeGluV2", renamed(geglu))])
BACKWARD_OPERATOR = of_torch_npu(
    "npu_geglu_grad", geglu_grad, ge=[GeKernel("GeGluGradV2", renamed(geglu_grad, dy="grad"))]
)
