"""`npu_add_rms_norm(x1, x2, gamma, epsilon=1e-06)` and its variants: npu_rms_norm of x = x1 + x2, which is rounded to its dtype first.

    npu_add_rms_norm                (y, rstd, x)
    npu_add_rms_norm_v2             rstd; y is written to x1, x to x2
    npu_add_rms_norm_v2_functional  (rstd, y, x), as npu_add_rms_norm_v2 leaves them
    npu_add_rms_norm_cast           (y cast to float32, y, rstd, x)

Sources: the operators' pages in the torch_npu documentation; the documents of AddRmsNorm, InplaceAddRmsNorm and AddRmsNormCast (ops-nn).
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


def add_rms_norm_v2(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> Tensor:
    """rstd; y is written to x1 and x1 + x2 to x2."""
    y, rstd, total = add_rms_norm(x1, x2, gamma, epsilon)
    x1.copy_(y)
    x2.copy_(total)
    return rstd


def add_rms_norm_v2_functional(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """rstd, y, x1 + x2."""
    y, rstd, total = add_rms_norm(x1, x2, gamma, epsilon)
    return rstd, y, total


def add_rms_norm_cast(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y cast to float32, y, rstd and x1 + x2: the kernel casts what it has rounded."""
    y, rstd, total = add_rms_norm(x1, x2, gamma, epsilon)
    return y.float(), y, rstd, total


OPERATOR = of_torch_npu("npu_add_rms_norm", add_rms_norm, ge=[GeKernel("AddRmsNorm", renamed(add_rms_norm))])
V2_OPERATOR = of_torch_npu("npu_add_rms_norm_v2", add_rms_norm_v2)
V2_FUNCTIONAL_OPERATOR = of_torch_npu("npu_add_rms_norm_v2_functional", add_rms_norm_v2_functional)
CAST_OPERATOR = of_torch_npu(
    "npu_add_rms_norm_cast", add_rms_norm_cast, ge=[GeKernel("AddRmsNormCast", renamed(add_rms_norm_cast))]
)
