"""`npu_rotary_mul(input, r1, r2, rotary_mode="half", rotate=None)`: input * r1 + rotated input * r2. And its gradient.

    input [..., D] float16, bfloat16, float32   r1, r2 broadcast to it   rotate [D, D]: the partner is input @ rotate instead

rotary_mode as in `rotation`; interleave-half and quarter are those of Ascend 950. Source: the operator's page in the torch_npu
documentation; the documents of RotaryPositionEmbedding and its gradient (ops-transformer). Float32 inside, rounded once.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.foundation.product import current_product
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed
from moe_graph.operators.gradients import vjp
from moe_graph.operators.position.rotation import MODES, turned


def rotary_mul(x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    """x with its pairs turned by the angles whose cosines are r1 and whose sines are r2.

    Raises ValueError for another mode than half and interleave, if the product is not Ascend 950.
    """
    if rotary_mode in MODES[2:] and current_product().name != "950":
        raise ValueError(f"rotary_mode must be half or interleave on {current_product().name}, got {rotary_mode!r}")
    if rotate is None:
        return turned(x, r1, r2, rotary_mode).to(x.dtype)
    if rotate.shape != (x.shape[-1], x.shape[-1]):
        raise ValueError(f"rotate must have shape [{x.shape[-1]}, {x.shape[-1]}], got {list(rotate.shape)}")
    wide = x.float()
    return (wide * r1.float() + (wide @ rotate.float()) * r2.float()).to(x.dtype)


def rotary_mul_backward(grad: Tensor, x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half") -> tuple:
    """Gradients of x, r1 and r2."""
    return tuple(vjp(lambda a, cos, sin: rotary_mul(a, cos, sin, rotary_mode), (x, r1, r2), grad))


def _ge_rotary_position_embedding(
    x: Tensor, cos: Tensor, sin: Tensor, rotate: Tensor | None = None, *, mode: int = 0
) -> Tensor:
    return rotary_mul(x, cos, sin, MODES[mode], rotate)


def _ge_rotary_mul_grad(x: Tensor, r1: Tensor, r2: Tensor, dy: Tensor, *, need_backward: bool = True) -> tuple:
    dx, dr1, dr2 = rotary_mul_backward(dy, x, r1, r2)
    return dx, dr1, dr2


def _ge_rotary_position_embedding_grad(dy: Tensor, cos: Tensor, sin: Tensor, x: Tensor, *, mode: int = 0) -> tuple:
    return rotary_mul_backward(dy, x, cos, sin, MODES[mode])


OPERATOR = of_torch_npu(
    "npu_rotary_mul",
    rotary_mul,
    ge=[
        GeKernel("RotaryMul", renamed(rotary_mul, without=("rotary_mode", "rotate"))),
        GeKernel("RotaryPositionEmbedding", _ge_rotary_position_embedding),
    ],
)
BACKWARD_OPERATOR = of_torch_npu(
    "npu_rotary_mul_backward",
    rotary_mul_backward,
    ge=[
        GeKernel("RotaryMulGrad", _ge_rotary_mul_grad),
        GeKernel("RotaryPositionEmbeddingGrad", _ge_rotary_position_embedding_grad),
    ],
)
