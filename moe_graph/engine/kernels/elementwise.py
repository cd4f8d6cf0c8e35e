"""Elementwise arithmetic and mathematical functions. Binary operators broadcast as NumPy does; operands have one dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moe_graph.engine.dtypes import GeType
from moe_graph.engine.registry import Tensors, kernel
from moe_graph.operators.rounding import in_float32, listed

aten = torch.ops.aten


@kernel("Add", "AddV2")
def add(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Add: x1 + x2."""
    return x1 + x2


@kernel("AddN")
@in_float32
def add_n(x: Tensors, *, N: int) -> Tensor:  # noqa: N803
    """GE AddN: the sum of the tensors x."""
    return torch.stack(x).sum(0, dtype=x[0].dtype)


@kernel("Sub")
def sub(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Sub: x1 - x2."""
    return x1 - x2


@kernel("Mul")
def mul(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Mul: x1 * x2."""
    return x1 * x2


@kernel("Muls")
def muls(x: Tensor, *, value: float) -> Tensor:
    """GE Muls: x times a number."""
    return x * value


@kernel("RealDiv")
def real_div(x1: Tensor, x2: Tensor) -> Tensor:
    """GE RealDiv: the true quotient of floating-point operands; of integers the quotient rounded towards zero; of truth values float32."""
    if x1.dtype == torch.bool:
        return x1.float() / x2.float()
    return x1 / x2 if x1.is_floating_point() or x1.is_complex() else torch.div(x1, x2, rounding_mode="trunc")


@kernel("Div")
def div(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Div: the quotient, of integers rounded towards zero."""
    return real_div(x1, x2)


@kernel("FloorDiv")
def floor_div(x1: Tensor, x2: Tensor) -> Tensor:
    """GE FloorDiv: the quotient rounded down."""
    return listed(aten.floor_divide.default)(x1, x2)


@kernel("Maximum")
def maximum(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Maximum: the larger of two."""
    return torch.maximum(x1, x2)


@kernel("Minimum")
def minimum(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Minimum: the smaller of two."""
    return torch.minimum(x1, x2)


@kernel("Exp")
@in_float32
def exp(x: Tensor, *, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """GE Exp: base ** (scale * x + shift); base -1 is e."""
    y = x * scale + shift
    return torch.exp(y) if base == -1.0 else torch.pow(base, y)


@kernel("Log")
@in_float32
def log(x: Tensor, *, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """GE Log: the logarithm of scale * x + shift to this base; base -1 is e."""
    y = x if scale == 1.0 and shift == 0.0 else x * scale + shift
    if base in _LOGARITHMS:
        return _LOGARITHMS[base](y)
    return torch.log(y) / torch.log(torch.tensor(base)).item()


_LOGARITHMS = {-1.0: torch.log, 2.0: torch.log2, 10.0: torch.log10}


@kernel("Pow")
def pow_(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Pow: x1 to the power x2."""
    return listed(aten.pow.Tensor_Tensor)(x1, x2)


@kernel("FloorMod")
def floor_mod(x1: Tensor, x2: Tensor) -> Tensor:
    """GE FloorMod: the remainder that has the sign of x2; of a whole number by 0 it is x1. Source: its definition (ops-math)."""
    if x1.is_floating_point():
        return torch.remainder(x1, x2)
    return torch.where(x2 == 0, x1, torch.remainder(x1, torch.where(x2 == 0, torch.ones_like(x2), x2)))


@kernel("TruncateMod", "Mod")
def truncate_mod(x1: Tensor, x2: Tensor) -> Tensor:
    """GE TruncateMod, Mod: x1 - trunc(x1 / x2) * x2, the remainder that has the sign of x1. Source: their documents (ops-math)."""
    return torch.fmod(x1, x2)


@kernel("TruncateDiv")
@in_float32
def truncate_div(x1: Tensor, x2: Tensor) -> Tensor:
    """GE TruncateDiv: the quotient rounded towards zero."""
    return torch.div(x1, x2, rounding_mode="trunc")


@kernel("DivNoNan")
@in_float32
def div_no_nan(x1: Tensor, x2: Tensor) -> Tensor:
    """GE DivNoNan: x1 / x2, and 0 where x2 is 0."""
    return torch.where(x2 == 0, torch.zeros_like(x1), x1 / x2)


@kernel("Atan2")
def atan2(x1: Tensor, x2: Tensor) -> Tensor:
    """GE Atan2: the angle of the point (x2, x1)."""
    return torch.atan2(x1, x2)


@kernel("SquaredDifference")
@in_float32
def squared_difference(x1: Tensor, x2: Tensor) -> Tensor:
    """GE SquaredDifference: (x1 - x2) squared."""
    return (x1 - x2).square()


@kernel("AxpyV2")
@in_float32
def axpy_v2(x1: Tensor, x2: Tensor, alpha: Tensor) -> Tensor:
    """GE AxpyV2: x1 + alpha * x2; alpha has one element."""
    return torch.add(x1, x2, alpha=alpha.item())


@kernel("Axpy")
@in_float32
def axpy(x1: Tensor, x2: Tensor, *, alpha: float) -> Tensor:
    """GE Axpy: x1 + alpha * x2."""
    return torch.add(x1, x2, alpha=alpha)


@kernel("Sxpy")
@in_float32
def sxpy(x1: Tensor, x2: Tensor, alpha: Tensor | None = None) -> Tensor:
    """GE Sxpy: x1 - alpha * x2; alpha has one element, 1 if absent."""
    return torch.sub(x1, x2, alpha=1 if alpha is None else alpha.item())


@kernel("Addcmul")
def addcmul(input_data: Tensor, x1: Tensor, x2: Tensor, value: Tensor) -> Tensor:
    """GE Addcmul: input_data + value * x1 * x2; value has one element."""
    return torch.addcmul(input_data, x1, x2, value=value.item())


@kernel("Addcdiv")
def addcdiv(input_data: Tensor, x1: Tensor, x2: Tensor, value: Tensor) -> Tensor:
    """GE Addcdiv: input_data + value * x1 / x2; value has one element."""
    return torch.addcdiv(input_data, x1, x2, value=value.item())


@kernel("Lerp")
def lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """GE Lerp: start + weight * (end - start)."""
    return torch.lerp(start, end, weight.to(start.dtype))


@kernel("ClipByValue")
def clip_by_value(x: Tensor, clip_value_min: Tensor, clip_value_max: Tensor) -> Tensor:
    """GE ClipByValue: max(min(x, clip_value_max), clip_value_min): the minimum wins. Source: its document and kernel (ops-math)."""
    return torch.maximum(torch.minimum(x, clip_value_max), clip_value_min)


@kernel("ClipByValueV2")
def clip_by_value_v2(x: Tensor, clip_value_min: Tensor, clip_value_max: Tensor) -> Tensor:
    """GE ClipByValueV2: min(max(x, clip_value_min), clip_value_max): the maximum wins, as in torch.clamp.

    Source: the kernel (ops-math, conversion/clip_by_value_v2); its document has the formula of ClipByValue.
    """
    return torch.clamp(x, clip_value_min, clip_value_max)


@kernel("Real")
def real(input: Tensor, *, Tout: GeType = 0) -> Tensor:  # noqa: A002, N803
    """GE Real: the real part, of type Tout."""
    return torch.real(input).to(Tout.torch).clone()


@kernel("Imag")
def imag(input: Tensor, *, Tout: GeType = 0) -> Tensor:  # noqa: A002, N803
    """GE Imag: the imaginary part, of type Tout."""
    return torch.imag(input).to(Tout.torch).clone()


@kernel("Complex")
def complex_(real: Tensor, imag: Tensor, *, Tout: GeType = 16) -> Tensor:  # noqa: N803
    """GE Complex: real + i * imag, of type Tout."""
    return torch.complex(real, imag).to(Tout.torch)


@kernel("Conj")
def conj(input: Tensor) -> Tensor:  # noqa: A002
    """GE Conj: the complex conjugate."""
    return torch.conj_physical(input)


@kernel("Erfinv")
def erfinv(input_x: Tensor) -> Tensor:
    """GE Erfinv: the inverse of the error function."""
    return torch.erfinv(input_x)


@kernel("Trunc")
def trunc(input_x: Tensor) -> Tensor:
    """GE Trunc: rounded towards zero."""
    return torch.trunc(input_x)


@kernel("NanToNum")
def nan_to_num(x: Tensor, *, nan: float, posinf: float, neginf: float) -> Tensor:
    """GE NanToNum: x with these numbers where it is not a number, infinite, or infinite below 0."""
    return torch.nan_to_num(x, nan, posinf, neginf)


@kernel("Round")
def round_(x: Tensor, *, decimals: int = 0) -> Tensor:
    """GE Round: to so many places behind the point, halves to even."""
    return torch.round(x, decimals=decimals) if decimals else torch.round(x)


# GE types that are one of torch's functions of one tensor x.
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Digamma": torch.digamma,
    "Erf": torch.erf,
    "Erfc": torch.erfc,
    "Expm1": torch.expm1,
    "Floor": torch.floor,
    "Lgamma": torch.lgamma,
    "Log1p": torch.log1p,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Rsqrt": in_float32(torch.rsqrt),
    "Sign": torch.sgn,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Square": torch.square,
    "Tan": torch.tan,
}


def _unary(ge_type: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        return function(x)

    call.__name__ = call.__qualname__ = ge_type
    call.__doc__ = f"GE {ge_type}: torch.{function.__name__} of each element."
    return call


for _ge_type, _function in UNARY.items():
    kernel(_ge_type)(_unary(_ge_type, _function))
