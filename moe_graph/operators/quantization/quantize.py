"""`npu_quantize(input, scales, zero_points, dtype, axis=1, div_mode=True)`: quantization with given scales.

    div_mode True    y = round(input / scales + zero_points); scales and zero_points [n] along `axis`; y int8, uint8 or int32
    div_mode False   y = round(input * scales + zero_points); axis -2 is the last but one, all above it the last; scales and zero_points
                     [n], [1], or of input's rank; y int8, or int4 packed in int32 [..., H / 8]

Source: the operator's page in the torch_npu documentation. Computed in float32; halves are rounded to even, y is cut to its type's range.
Not served: float8 and hifloat8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import destination, int4
from moe_graph.operators.quantization.int8 import INT8_MAX

_QUANTIZED = {12: torch.int8, 13: torch.uint8, 14: torch.int32, 1: torch.int8, 0: torch.uint8, 3: torch.int32}
_BY_NAME = {"torch.qint8": torch.int8, "torch.quint8": torch.uint8, "torch.qint32": torch.int32}
_QINT8 = 12


def along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """[n] in a shape that broadcasts along `axis` of x; a parameter of several dimensions as it is. float32."""
    if parameter.dim() == 1 and x.dim() > 0:
        shape = [1] * x.dim()
        shape[axis] = parameter.numel()
        parameter = parameter.reshape(shape)
    return parameter.float()


def divided(x: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: torch.dtype) -> Tensor:
    """round(x / scales + zero_points), cut to the range of `dtype`. The parameters broadcast."""
    values = x.float() / scales.float()
    if zero_points is not None:
        values = values + zero_points.float()
    limits = torch.iinfo(dtype)
    # float64 has the largest int32, which float32 does not.
    return values.round().double().clamp(limits.min, limits.max).to(dtype)


def multiplied(x: Tensor, scale: Tensor, offset: Tensor | None, axis: int) -> Tensor:
    """x * scale + offset, float32, along the last axis or, -2, the last but one."""
    axis = max(min(axis, -1), -min(2, x.dim())) if x.dim() else axis
    values = x.float() * along(scale, x, axis)
    return values if offset is None else values + along(offset, x, axis)


def quantize(
    x: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: int, axis: int = 1, div_mode: bool = True
) -> Tensor:
    """As the module's document says. Raises ValueError for scales that do not fit, NotImplementedError for a type that is not served."""
    if div_mode:
        if scales.dim() != 1 or (zero_points is not None and zero_points.dim() != 1):
            raise ValueError("npu_quantize: scales and zero_points must be of shape [n] with div_mode True")
        if not -x.dim() <= axis < x.dim():
            raise ValueError(f"npu_quantize: axis must be from {-x.dim()} to {x.dim() - 1}, got {axis}")
        if dtype not in _QUANTIZED:
            raise NotImplementedError(
                f"npu_quantize: dtype must be qint8, quint8 or qint32 with div_mode True, got the dtype with number {dtype}"
            )
        zeros = None if zero_points is None else along(zero_points, x, axis)
        return divided(x, along(scales, x, axis), zeros, _QUANTIZED[dtype])
    maximum = destination.largest("npu_quantize: dtype", destination.INT8_NUMBER if dtype == _QINT8 else dtype)
    if not (x.dim() == 1 and axis >= -2) and not -2 <= axis < x.dim():
        raise ValueError(f"npu_quantize: axis must be from -2 to {x.dim() - 1} with div_mode False, got {axis}")
    return destination.rounded(multiplied(x, scales, zero_points, axis), maximum)


def _ge_quantize(x: Tensor, scales: Tensor, zero_points: Tensor | None = None, *, dtype: str, axis: int = 1) -> Tensor:
    """GE Quantize. torchair gives the parameters x's rank."""
    if dtype not in _BY_NAME:
        raise NotImplementedError(f"Quantize: dtype must be one of {list(_BY_NAME)}, got {dtype!r}")
    zeros = None if zero_points is None else along(zero_points, x, axis)
    return divided(x, along(scales, x, axis), zeros, _BY_NAME[dtype])


def _ge_ascend_quant_v2(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    sqrt_mode: bool = False,
    round_mode: str = "round",
    dst_type: GeType = 2,  # type: ignore[assignment]
    axis: int = -1,
) -> Tensor:
    """GE AscendQuantV2, as torchair writes it."""
    if sqrt_mode or round_mode != "round":
        raise NotImplementedError(
            f"AscendQuantV2: sqrt_mode must be false and round_mode 'round', got {sqrt_mode} and {round_mode!r}"
        )
    values = multiplied(x, scale, offset, axis)
    if dst_type.name == "DT_INT4":
        return int4.carried(values.round().clamp(int4.INT4_MIN, int4.INT4_MAX))
    if dst_type.name not in ("DT_INT8", "DT_QINT8"):
        raise NotImplementedError(f"AscendQuantV2: dst_type must be DT_INT8 or DT_INT4, got {dst_type.name}")
    return destination.rounded(values, INT8_MAX)


OPERATOR = of_torch_npu(
    "npu_quantize",
    quantize,
    ge=[GeKernel("Quantize", _ge_quantize), GeKernel("AscendQuantV2", _ge_ascend_quant_v2)],
)
