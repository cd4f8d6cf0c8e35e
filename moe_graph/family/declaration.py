"""How an operator of the family is declared: its schema, and a kernel for each dispatch key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe_graph import compat

NAMESPACE = "npu"


@dataclass(frozen=True)
class Operator:
    """One operator `npu::NAME`.

    CompositeExplicitAutograd serves each device that has no kernel of its own, so torch_npu's (PrivateUse1) keeps precedence.

    Attributes:
        schema: torch_npu's, which is in force where torch_npu defines the operator; this one is defined where it does not
        kernels: dispatch key -> kernel, registered over what is there
    """

    schema: str
    kernels: Mapping[str, Callable] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name without the namespace, with the overload's if it is not the default one: "npu_grouped_matmul.List"."""
        return self.schema.partition("(")[0]

    @property
    def qualname(self) -> str:
        """The name with the namespace."""
        return f"{NAMESPACE}::{self.name}"

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The operator now in force, torch_npu's or ours. Looked up at each use: loading torch_npu replaces it."""
        name, _, overload = self.name.partition(".")
        return getattr(getattr(torch.ops.npu, name), overload or "default")


def declare(
    schema: str, *, fake: Callable, fallback: Callable, differentiable: bool = False, autograd: Callable | None = None
) -> Operator:
    """An operator with a fake implementation and an any-device fallback, both with the schema's parameters.

    Args:
        schema: of the operator, without its namespace.
        fake: the fake implementation.
        fallback: the kernel for any device.
        differentiable: the fallback is composed of operators that torch differentiates; its gradient is theirs. A gradient that
            torch_npu has for NPU tensors keeps precedence.
        autograd: the kernel under Autograd of an operator that records a gradient of its own.
    """
    kernels: dict[str, Callable] = {"CompositeExplicitAutograd": fallback, "Meta": fake}
    operator = Operator(schema, kernels)
    if differentiable:
        kernels["Autograd"] = _composed_gradient(operator, fallback)
    if autograd is not None:
        kernels["Autograd"] = autograd
    return operator


def _composed_gradient(operator: Operator, fallback: Callable) -> Callable:
    """The kernel under Autograd: with a gradient to record it is the fallback's own operators that are recorded."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors((*args, *kwargs.values()))):
            return fallback(*args, **kwargs)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.overload(*args, **kwargs)

    call.__name__ = call.__qualname__ = f"{operator.name.replace('.', '_')}_autograd"
    return call


def _tensors(values: tuple) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(tuple(value))


def is_defined(operator: Operator) -> bool:
    """Has anybody defined the operator's schema?"""
    return compat.schema_of(operator.qualname) is not None
