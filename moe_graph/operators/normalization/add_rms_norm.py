"""`npu_add_rms_norm(x1, x2, gamma, epsilon=1e-06)`: y and rstd of npu_rms_norm over x = x1 + x2, and x itself: (y, rstd, x).

Source: the operator's page in the torch_npu documentation; GE AddRmsNorm. x is rounded to its dtype before it is normalized.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed
from moe_graph.operators.normalization.rms_norm import rms_norm


def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """y, rstd and x1 + x2."""
    total = x1 + x2
    return *rms_norm(total, gamma, epsilon), total


OPERATOR = of_torch_npu("npu_add_rms_norm", add_rms_norm, ge=[GeKernel("AddRmsNorm", renamed(add_rms_norm))])
