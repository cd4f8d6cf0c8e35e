"""`npu_interleave_rope(x, cos, sin)`: x with its even elements first and its odd ones behind them, then turned by halves.

    x [B, N, S, D] float16, bfloat16, D = 64   cos, sin [B, 1, S or 1, D]   -> [B, N, S, D]

Source: the operator's page in the torch_npu documentation. Float32 inside, rounded once.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed
from moe_graph.operators.position.rotation import turned


def interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As the module's document says."""
    if x.dim() != 4 or cos.shape != sin.shape or cos.dim() != 4 or cos.shape[1] != 1:
        raise ValueError(
            f"x must be [B, N, S, D], cos and sin [B, 1, S or 1, D], got {list(x.shape)}, {list(cos.shape)}, {list(sin.shape)}"
        )
    return turned(x, cos, sin, "interleave-half").to(x.dtype)


OPERATOR = of_torch_npu(
    "npu_interleave_rope", interleave_rope, ge=[GeKernel("InterleaveRope", renamed(interleave_rope))]
)
