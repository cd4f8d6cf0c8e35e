"""torchair's declared cases as runnable ones.

torchair declares for a converter the calls it supports (`declare_supported`), tensors by shape, dtype and range of values. They are read
from the installed torchair, so the simulated device must run before this module's functions are called.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# What integers are drawn from where the declaration names no range: small enough for products, not all zero.
_INTEGERS = (0, 10)


@dataclass(frozen=True)
class Case:
    """One declared call. `operator` is what torchair registered a converter for: an aten overload or a Python function on numbers.

    `index` counts the operator's cases from 0.
    """

    name: str
    index: int
    operator: Callable[..., Any]
    declared_args: tuple[Any, ...]
    declared_kwargs: Mapping[str, Any]

    @property
    def is_random(self) -> bool:
        """Does the operator draw random numbers? By torch's own tag."""
        return torch.Tag.nondeterministic_seeded in getattr(self.operator, "tags", ())

    def __str__(self) -> str:
        return f"{self.name} #{self.index}"

    def describe(self) -> str:
        """The arguments as torchair declares them, on one line."""
        parts = [str(value) for value in self.declared_args]
        parts += [f"{name}={value}" for name, value in self.declared_kwargs.items()]
        return ", ".join(parts).replace("torch.", "")

    def make(self, device: str) -> tuple[list[Any], dict[str, Any]]:
        """Arguments and keyword arguments, tensors drawn on the CPU with torch's current seed and moved to `device`.

        A device among the arguments becomes `device` too. Raises what torch raises if a tensor cannot be made as declared.
        """
        args = [_make(value, device) for value in self.declared_args]
        return args, {name: _make(value, device) for name, value in self.declared_kwargs.items()}


def declared_cases(pattern: str | None = None) -> list[Case]:
    """All declared cases, in torchair's order; with a pattern those whose operator's name has it as a part, or matches it with * and ?."""
    from torchair._ge_concrete_graph.fx2ge_converter import _declare_supported_converters

    found = []
    for operator, converter in _declare_supported_converters().items():
        name = operator_name(operator)
        if pattern is None or _matches(name, pattern):
            for index, support in enumerate(converter.supported_cases or ()):
                found.append(Case(name, index, operator, tuple(support.args), dict(support.kwargs)))
    return found


def operator_name(operator: Callable[..., Any]) -> str:
    """For instance "aten.add.Tensor", or "math.floor" for a Python function."""
    if isinstance(operator, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(operator)
    return f"{operator.__module__.lstrip('_')}.{operator.__name__}"


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) if set(pattern) & set("*?[") else pattern in name


def _make(value: Any, device: str) -> Any:
    from torchair._ge_concrete_graph.supported_declaration import _TypedTensor

    if isinstance(value, _TypedTensor):
        return _draw(value).to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(_make(item, device) for item in value)
    if isinstance(value, torch.device) or (isinstance(value, str) and value == "npu"):
        return torch.device(device)
    return value


def _draw(declared: Any) -> Tensor:
    if declared.value is not None:
        return torch.tensor(declared.value, dtype=declared.dtype)
    shape = declared.dims
    if len(shape) == 1 and isinstance(shape[0], (list, tuple)):  # some are declared with one list instead of sizes
        shape = tuple(shape[0])
    if declared.dtype == torch.bool:
        return torch.randint(0, 2, shape).bool()
    if declared.dtype.is_complex:
        return torch.randn(shape, dtype=declared.dtype)
    if not declared.dtype.is_floating_point:
        low, high = declared.value_range or _INTEGERS
        return torch.randint(int(low), int(high), shape).to(declared.dtype)
    if declared.value_range is None:
        return torch.randn(shape).to(declared.dtype)
    low, high = declared.value_range
    return (torch.rand(shape) * (high - low) + low).to(declared.dtype)
