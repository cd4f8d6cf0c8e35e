"""`npu_rotate_quant(x, rotation, *, dst_dtype=None, ...)`: rows turned by a small matrix, then quantised.

    x [M, N] float16, bfloat16   rotation [k, k], k a divisor of N: each k values of a row times rotation
    scale = max |v| / 127 of the row (int4: / 7)   y = round(v / scale), int8 [M, N] (None), or int4 packed in int32 [M, N / 8]
    Where all values are 0, scale and y are.

Source: the document of aclnnRotateQuant (ops-nn, matmul/rotate_quant). Float32 inside. Not served: alpha, which A2 and A3 do not have, and
the types of Ascend 950.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import destination, int4

_check = Checks("npu_rotate_quant")


def _rotated(x: Tensor, rotation: Tensor, maximum: float) -> tuple[Tensor, Tensor]:
    """Whole numbers as float32 [M, N], scale [M]."""
    _check.rank("x", x, (2,), "[M, N]")
    size = rotation.shape[0]
    _check.size(x.shape[1] % size == 0, "rotation", f"of k that divides N = {x.shape[1]}", rotation)
    values = (x.float().unflatten(1, (-1, size)) @ rotation.float()).flatten(1)
    scale = values.abs().amax(1, keepdim=True) / maximum
    return destination.steps(values, scale, maximum), scale.squeeze(1)


def rotate_quant(
    x: Tensor,
    rotation: Tensor,
    *,
    alpha: Tensor | None = None,
    dst_dtype: int | None = None,
    axis: int | None = -1,
    round_mode: str | None = "rint",
    scale_alg: int | None = 0,
    dst_type_max: float | None = 0.0,
    transpose_y: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """y and scale. Raises NotImplementedError, naming the argument, for a form that is not served."""
    asked = dict(
        alpha=alpha, scale_alg=scale_alg or None, dst_type_max=dst_type_max or None, transpose_y=transpose_y or None
    )
    for name, value in asked.items():
        if value is not None:
            raise NotImplementedError(f"npu_rotate_quant: {name} must be left at its default, it is not served")
    _check.value("axis", axis, (None, -1, 1))
    _check.value("round_mode", round_mode, (None, "rint"))
    maximum = destination.largest("npu_rotate_quant: dst_dtype", dst_dtype)
    y, scale = _rotated(x, rotation, maximum)
    return destination.rounded(y, maximum), scale


def _ge_rotate_quant(
    x: Tensor,
    rotation: Tensor,
    alpha: Tensor | None = None,
    *,
    y_dtype: GeType = 0,  # type: ignore[assignment]
    axis: int = -1,
    round_mode: str = "rint",
    scale_alg: int = 0,
    dst_type_max: float = 0.0,
    transpose_y: bool = False,
) -> tuple[Tensor, Tensor]:
    """GE RotateQuant."""
    if y_dtype.name == "DT_INT4":
        if alpha is not None or scale_alg or dst_type_max or transpose_y or round_mode != "rint":
            raise NotImplementedError(
                "RotateQuant: of int4 all but x, rotation and axis must be left at their defaults"
            )
        y, scale = _rotated(x, rotation, int4.INT4_MAX)
        return int4.carried(y), scale
    if y_dtype.name != "DT_INT8":
        raise NotImplementedError(f"RotateQuant: y_dtype must be DT_INT8 or DT_INT4, got {y_dtype.name}")
    return rotate_quant(
        x,
        rotation,
        alpha=alpha,
        axis=axis,
        round_mode=round_mode,
        scale_alg=scale_alg,
        dst_type_max=dst_type_max,
        transpose_y=transpose_y,
    )


OPERATOR = of_torch_npu("npu_rotate_quant", rotate_quant, ge=[GeKernel("RotateQuant", _ge_rotate_quant)])
