"""Operators on lists of tensors whose kernels on a device compute float16 in float16, each step rounded; bfloat16 in float32, rounded once.

Sources: ops-nn (foreach_sub_list multiplies float16, then subtracts) and the goldens of op-plugin's tests. One function for a place of
the lists serves eager operators and the host engine's kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.rounding import as_rounded, base_name, in_float32


def _each_step(steps: Callable[..., Tensor], once: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of the tensors of one place of lists and a number: of float16 by `steps`, which round each, else by `once`."""
    wide = in_float32(once)

    def call(*arguments: Any) -> Tensor:
        *tensors, number = arguments
        if all(tensor.dtype == torch.float16 for tensor in tensors):
            return steps(*tensors, as_rounded(float(number), torch.float16))
        return wide(*tensors, number)

    return call


plus_multiple = _each_step(
    lambda x, other, alpha: torch.add(x, other, alpha=alpha), lambda x, other, alpha: torch.add(x, other, alpha=alpha)
)
less_multiple = _each_step(
    lambda x, other, alpha: x - other * alpha, lambda x, other, alpha: torch.sub(x, other, alpha=alpha)
)
plus_product = _each_step(
    lambda x, a, b, value: x + a * b * value, lambda x, a, b, value: torch.addcmul(x, a, b, value=value)
)
plus_quotient = _each_step(
    lambda x, a, b, value: x + a / b * value, lambda x, a, b, value: torch.addcdiv(x, a, b, value=value)
)


def _with_alpha(
    place: Callable[..., Tensor], xs: Sequence[Tensor], others: Sequence[Tensor], *, alpha: float = 1
) -> list[Tensor]:
    _refuse_other_lengths(xs, others)
    return [place(x, other, alpha) for x, other in zip(xs, others)]


def _refuse_other_lengths(*lists: Sequence[Any]) -> None:
    if len({len(each) for each in lists}) > 1:
        raise RuntimeError(f"Tensor lists must have the same number of tensors, got {[len(each) for each in lists]}")


def _with_scalars(place: Callable[..., Tensor], *lists: Any) -> list[Tensor]:
    *tensors, scalars = lists
    values = scalars.tolist() if isinstance(scalars, Tensor) else scalars
    _refuse_other_lengths(*tensors, values)
    return [place(*places) for places in zip(*tensors, values)]


LISTS: dict[tuple[str, str], Callable[..., list[Tensor]]] = {
    ("_foreach_add", "List"): functools.partial(_with_alpha, plus_multiple),
    ("_foreach_sub", "List"): functools.partial(_with_alpha, less_multiple),
    ("_foreach_addcmul", "ScalarList"): functools.partial(_with_scalars, plus_product),
    ("_foreach_addcdiv", "ScalarList"): functools.partial(_with_scalars, plus_quotient),
    ("_foreach_addcdiv", "Tensor"): functools.partial(_with_scalars, plus_quotient),
}


def of_lists(overload: torch._ops.OpOverload) -> Callable[..., Any] | None:
    """An operator of aten on lists, on CPU tensors; None if no device rounds it step by step. `overload`: also the form in place."""
    place = LISTS.get((base_name(overload), overload._schema.overload_name))
    if place is None or not overload._schema.is_mutable:
        return place

    def in_place(xs: Sequence[Tensor], *args: Any, **kwargs: Any) -> None:
        for x, new in zip(xs, place(xs, *args, **kwargs)):
            x.copy_(new)

    return in_place
