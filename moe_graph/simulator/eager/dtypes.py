"""Dtypes that a device takes and computes in, and the CPU's kernels do not: cast on the way in, and the results on the way out.

Decided when an operator is made, at its first call; what is in no table is called as it is. Half types: `operators.rounding`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators import foreach, rounding
from moe_graph.simulator.eager.call import with_tensors

# Indices and targets that the CPU's kernels want as int64; a device takes int32, too. By the operator's name without overload and
# the underscore of the form in place.
INDICES = {
    **dict.fromkeys(
        ("nll_loss_forward", "nll_loss_backward", "nll_loss2d_forward", "nll_loss2d_backward"),
        ("target",),
    ),
    **dict.fromkeys(("multilabel_margin_loss", "multilabel_margin_loss_forward"), ("target",)),
    "multilabel_margin_loss_backward": ("target", "is_target"),
    **dict.fromkeys(
        (
            "put",
            "take",
            "gather",
            "scatter",
            "scatter_add",
            "scatter_reduce",
            "index_copy",
            "index_fill",
            "index_reduce",
        ),
        ("index",),
    ),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), ("indices",)),
    "searchsorted": ("sorter",),
}

# Operators of floating-point numbers that a device computes of whole ones, too (op-plugin's tests): by float32, and back.
WHOLE_NUMBERS = frozenset({"hardsigmoid"})


def adapted(overload: torch._ops.OpOverload, function: Callable[..., Any] | None = None) -> Callable[..., Any] | None:
    """What computes an operator on CPU tensors: `function`, if not itself, with the casts it is listed for. None: itself as it is."""
    stepwise = foreach.of_lists(overload)
    if stepwise is not None:
        return stepwise
    name = rounding.base_name(overload)
    plain = with_tensors(overload) if function is None else function
    function = rounding.rounded_once(overload, plain) or function
    if name in WHOLE_NUMBERS:
        function = _of_whole_numbers(function or plain)
    if name in INDICES:
        names = [argument.name for argument in overload._schema.arguments]
        chosen = tuple(name for name in INDICES[name] if name in names)
        function = _with_long(function or plain, chosen, tuple(names.index(name) for name in chosen))
    return function


def _with_long(function: Callable[..., Any], names: tuple[str, ...], positions: tuple[int, ...]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        for name, position in zip(names, positions):
            if position < len(given):
                given[position] = _long(given[position])
            elif name in kwargs:
                kwargs[name] = _long(kwargs[name])
        return function(*given, **kwargs)

    return call


def _long(value: Any) -> Any:
    return value.long() if isinstance(value, Tensor) and value.dtype == torch.int32 else value


def _of_whole_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.is_floating_point():
            return function(x, *args, **kwargs)
        wide = x.float()
        result = function(wide, *args, **kwargs)
        return x.copy_(wide) if result is wide else result.to(x.dtype)

    return call
