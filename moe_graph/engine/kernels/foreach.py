"""Foreach operators: one function over the tensors of a list. Scalars come as tensors of one element, or of one for each tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_graph.engine.registry import Tensors, kernel
from moe_graph.operators.foreach import less_multiple, plus_multiple, plus_product, plus_quotient
from moe_graph.operators.rounding import in_float32

# Of each tensor: Foreach<name>.
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "ACos": torch.acos,
    "Acos": torch.acos,
    "ASin": torch.asin,
    "Asin": torch.asin,
    "ATan": torch.atan,
    "Atan": torch.atan,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Erfc": torch.erfc,
    "Exp": torch.exp,
    "Expm1": torch.expm1,
    "Log": torch.log,
    "Log10": torch.log10,
    "Log1p": torch.log1p,
    "Log2": torch.log2,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

# Of each tensor and a number: Foreach<name>Scalar and Foreach<name>ScalarList.
WITH_SCALAR: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Maximum": lambda x, scalar: torch.clamp(x, min=scalar),
    "Minimum": lambda x, scalar: torch.clamp(x, max=scalar),
    "Pow": torch.pow,
}

# Of the tensors of two lists, pair by pair: Foreach<name>List. Add and Sub, which have a factor, stand below.
WITH_LIST: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Mul": torch.mul,
    "Div": torch.div,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "Pow": torch.pow,
}

# Of the tensors of three lists and a number: Foreach<name>Scalar, Foreach<name>ScalarList and Foreach<name>List.
WITH_TWO_LISTS: dict[str, Callable[..., Tensor]] = {
    "Addcmul": lambda x, a, b, scalar: torch.addcmul(x, a, b, value=scalar),
    "Addcdiv": lambda x, a, b, scalar: torch.addcdiv(x, a, b, value=scalar),
}


# Of these a device rounds ScalarList otherwise than Scalar.
_PER_PLACE = {"Addcmul": plus_product, "Addcdiv": plus_quotient}


def _per_tensor(scalars: Tensor, count: int) -> Sequence[float]:
    """A number for each of `count` tensors."""
    values = scalars.reshape(-1).tolist()
    if len(values) == 1:
        return values * count
    if len(values) < count:
        raise ValueError(f"scalars must be 1 or one for each of {count} tensors, got {len(values)}")
    return values[:count]


def _register(ge_type: str, function: Callable, text: str) -> None:
    function.__name__ = function.__qualname__ = ge_type
    function.__doc__ = f"GE {ge_type}: {text}"
    kernel(ge_type)(function)


def _make_unary(function: Callable[[Tensor], Tensor]) -> Callable:
    def call(x: Tensors) -> Tensors:
        return [function(tensor) for tensor in x]

    return call


def _make_scalar(function: Callable[[Tensor, float], Tensor]) -> Callable:
    def call(x: Tensors, scalar: Tensor) -> Tensors:
        return [function(tensor, value) for tensor, value in zip(x, _per_tensor(scalar, len(x)))]

    return call


def _make_scalar_list(function: Callable[[Tensor, float], Tensor]) -> Callable:
    def call(x: Tensors, scalars: Tensor) -> Tensors:
        return [function(tensor, value) for tensor, value in zip(x, _per_tensor(scalars, len(x)))]

    return call


def _make_list(function: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    def call(x1: Tensors, x2: Tensors) -> Tensors:
        return [function(a, b) for a, b in zip(x1, x2)]

    return call


def _make_two_lists(function: Callable[..., Tensor]) -> Callable:
    def call(x1: Tensors, x2: Tensors, x3: Tensors, scalar: Tensor) -> Tensors:
        return [function(*each) for each in zip(x1, x2, x3, _per_tensor(scalar, len(x1)))]

    return call


def _make_two_lists_scalars(function: Callable[..., Tensor]) -> Callable:
    def call(x1: Tensors, x2: Tensors, x3: Tensors, scalars: Tensor) -> Tensors:
        return [function(*each) for each in zip(x1, x2, x3, _per_tensor(scalars, len(x1)))]

    return call


for _name, _function in UNARY.items():
    _register(f"Foreach{_name}", _make_unary(in_float32(_function)), f"torch.{_function.__name__} of each tensor.")
for _name, _function in WITH_SCALAR.items():
    _text = f"{_name} of each tensor and "
    _register(f"Foreach{_name}Scalar", _make_scalar(in_float32(_function)), _text + "the scalar.")
    _register(f"Foreach{_name}ScalarList", _make_scalar_list(in_float32(_function)), _text + "its scalar.")
for _name, _function in WITH_LIST.items():
    _register(f"Foreach{_name}List", _make_list(in_float32(_function)), f"{_name} of each pair of tensors.")
for _name, _function in WITH_TWO_LISTS.items():
    _text = f"{_name} of the tensors of three lists with "
    _register(f"Foreach{_name}Scalar", _make_two_lists(in_float32(_function)), _text + "the scalar.")
    _register(
        f"Foreach{_name}ScalarList",
        _make_two_lists_scalars(_PER_PLACE.get(_name, in_float32(_function))),
        _text + "their scalar.",
    )
    _register(
        f"Foreach{_name}List",
        _make_two_lists_scalars(_PER_PLACE.get(_name, in_float32(_function))),
        _text + "their element of scalars.",
    )


@kernel("ForeachAddList")
def foreach_add_list(x1: Tensors, x2: Tensors, alpha: Tensor) -> Tensors:
    """GE ForeachAddList: x1 + alpha * x2 of each pair."""
    return [plus_multiple(a, b, alpha.item()) for a, b in zip(x1, x2)]


@kernel("ForeachSubList")
def foreach_sub_list(x1: Tensors, x2: Tensors, alpha: Tensor) -> Tensors:
    """GE ForeachSubList: x1 - alpha * x2 of each pair."""
    return [less_multiple(a, b, alpha.item()) for a, b in zip(x1, x2)]


@kernel("ForeachPowScalarAndTensor")
def foreach_pow_scalar_and_tensor(scalar: Tensor, x: Tensors) -> Tensors:
    """GE ForeachPowScalarAndTensor: the scalar to the power of each tensor."""
    power = in_float32(torch.pow)
    return [power(scalar.item(), tensor) for tensor in x]


@kernel("ForeachLerpList")
@in_float32
def foreach_lerp_list(x1: Tensors, x2: Tensors, weight: Tensors) -> Tensors:
    """GE ForeachLerpList: x1 + weight * (x2 - x1) of the tensors of three lists."""
    return [torch.lerp(*each) for each in zip(x1, x2, weight)]


@kernel("ForeachLerpScalar")
@in_float32
def foreach_lerp_scalar(x1: Tensors, x2: Tensors, weight: Tensor) -> Tensors:
    """GE ForeachLerpScalar: x1 + weight * (x2 - x1) of each pair."""
    return [torch.lerp(a, b, weight.item()) for a, b in zip(x1, x2)]


@kernel("ForeachNorm")
@in_float32
def foreach_norm(x: Tensors, scalar: Tensor) -> Tensors:
    """GE ForeachNorm: the norm of this order of each tensor."""
    return [torch.linalg.vector_norm(tensor, scalar.item()) for tensor in x]


def _round_half_away(x: Tensor) -> Tensor:
    return torch.copysign(torch.floor(x.abs() + 0.5), x)


_ROUND_MODES = {
    1: torch.round,
    2: torch.floor,
    3: torch.ceil,
    4: _round_half_away,
    5: torch.trunc,
    7: torch.frac,
}


@kernel("ForeachRoundOffNumber")
def foreach_round_off_number(x: Tensors, roundMode: Tensor) -> Tensors:  # noqa: N803
    """GE ForeachRoundOffNumber: each tensor rounded by the kernel's rounding modes: 1 to the nearest, halves to even, 2 down, 3 up,
    4 to the nearest, halves away from zero, 5 towards zero, 7 the fraction that is left."""
    mode = int(roundMode)
    if mode not in _ROUND_MODES:
        raise NotImplementedError(f"roundMode must be one of {sorted(_ROUND_MODES)}, got {mode}")
    return [_ROUND_MODES[mode](tensor) for tensor in x]
