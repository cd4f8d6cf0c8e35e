"""`npu_gemma_rms_norm(self, gamma, epsilon=1e-06)`: npu_rms_norm with 1 + gamma for gamma: (y, rstd).

Source: the document of aclnnGemmaRmsNorm (ops-nn, norm/gemma_rms_norm). Float32 inside, rounded once.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.normalization.rms_norm import rms_norm


def gemma_rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """y and rstd, as the module's document says."""
    return rms_norm(x, gamma.float() + 1, epsilon)


OPERATOR = of_torch_npu("npu_gemma_rms_norm", gemma_rms_norm)
