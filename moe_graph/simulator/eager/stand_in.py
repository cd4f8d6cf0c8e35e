"""A surveyed operator: what the device lacks of it is answered by its fake implementation's shapes, without values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import marks, survey
from moe_graph.simulator.eager import record
from moe_graph.simulator.runtime import launches

_REFUSALS = (NotImplementedError, ValueError, RuntimeError, IndexError)


def surveyed(overload: torch._ops.OpOverload, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of an operator; what it refuses is noted, and answered if the fake implementation takes it.

    Of an operator of aten a refusal is the program's own mistake, but for NotImplementedError; of arguments that hang on a stand-in it is
    a consequence.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except _REFUSALS as error:
            follows = marks.call.fed
            if overload.namespace == "aten" and not follows and not isinstance(error, NotImplementedError):
                raise
            result = answer(overload, args, kwargs, error)
            if not follows:
                survey.found(survey.FORM, overload.name(), str(error), launches.user_line())
            return result

    return call


def marking(operator: Any) -> Callable[..., Any]:
    """An operator's kernel that marks what it gives, and what it has written to, if that hangs on a stand-in."""

    def call(args: tuple, kwargs: dict[str, Any]) -> Any:
        written = record.written(operator.overload._schema, list(args), kwargs)
        return marks.computed(lambda: operator(args, kwargs), *args, *kwargs.values(), written=written)

    return call


def missing(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """In place of the function of an operator that has none."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return answer(overload, args, kwargs, NotImplementedError(f"{overload} has no fake implementation"))

    return call


def answer(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any], error: Exception) -> Any:
    """The operator's results without values, on CPU tensors; what it writes to has none any more.

    Raises `error` if the fake implementation does not say the shapes.
    """
    arguments = record.Arguments(overload)
    metas, meta_kwargs = arguments.metas(args, kwargs)
    results: Any = ()
    try:
        if overload._schema.returns:
            results = overload(*metas, **meta_kwargs)
    except Exception:
        results = record.returned_as_written(overload._schema, metas, meta_kwargs)
        if results is None:
            raise error from None
    marks.call.answered = True
    for written in record.written(overload._schema, list(args), kwargs):
        marks.without_values(written)
    if not overload._schema.returns:
        return None
    if isinstance(results, (list, tuple)):
        return tuple(_made(value, arguments) for value in results)
    return _made(results, arguments)


def _made(value: Any, arguments: record.Arguments) -> Any:
    if isinstance(value, (list, tuple)):
        return [_made(item, arguments) for item in value]
    if not isinstance(value, Tensor):
        return value
    given = arguments.given(value)
    return given if given is not None else marks.without_values(torch.empty_like(value, device="cpu"))
