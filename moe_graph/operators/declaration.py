"""How an operator is declared: one `Operator` holds its schema, its reference, its kernels by dispatch key and the GE types it lowers to.

From that one declaration come the any-device fallback and the fake implementation (`moe_graph.register`), the kernel on NPU tensors
(the simulated device), the kernels of the host engine, and the operator's row in the documents.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import compat, transforms
from moe_graph.operators.ge import GeKernel

NAMESPACE = "npu"


@dataclass(frozen=True)
class Operator:
    """One operator `npu::NAME`, or of another namespace of torch_npu's.

    Attributes:
        schema: torch_npu's, which is in force where torch_npu defines the operator; with `kernels` it is defined where torch_npu does
            not. Of an operator that torch_npu alone defines, the name is enough: "npu_rms_norm", "scatter_update_"
        reference: computes it on CPU tensors, with the schema's parameters
        kernels: dispatch key -> kernel, which `moe_graph.register` registers over what is there; empty where torch_npu alone defines the
            operator. CompositeExplicitAutograd serves each device that has no kernel of its own, so torch_npu's (PrivateUse1) keeps
            precedence
        ge: the GE types that torchair lowers it to, each with its kernel
        refined_fake: what is added to torch_npu's fake implementation, which takes the place of ours where torch_npu is loaded;
            called with torch_npu's and the arguments. It accepts and refuses what torch_npu's does
        namespace: "npu", or "atb": the operators of the Ascend Transformer Boost library
    """

    schema: str
    reference: Callable
    kernels: Mapping[str, Callable] = field(default_factory=dict)
    ge: tuple[GeKernel, ...] = ()
    refined_fake: Callable | None = None
    namespace: str = NAMESPACE

    @property
    def name(self) -> str:
        """The name without the namespace, with the overload's if it is not the default one: "npu_grouped_matmul.List"."""
        return self.schema.partition("(")[0]

    @property
    def qualname(self) -> str:
        """The name with the namespace."""
        return f"{self.namespace}::{self.name}"

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The operator now in force, torch_npu's or ours. Looked up at each use: loading torch_npu replaces it."""
        name, _, overload = self.name.partition(".")
        return getattr(getattr(getattr(torch.ops, self.namespace), name), overload or "default")

    @property
    def room(self) -> str:
        """The folder of the operator's module: "moe", "attention"."""
        return self.reference.__module__.split(".")[-2]

    @property
    def document(self) -> str:
        """The docstring of the operator's module: shapes, modes, dtypes, source."""
        return sys.modules[self.reference.__module__].__doc__ or ""


def declare(
    schema: str,
    *,
    fake: Callable,
    fallback: Callable,
    differentiable: bool = False,
    autograd: Callable | None = None,
    vmap: transforms.Rule | None = None,
    ge: Sequence[GeKernel] = (),
    refined_fake: Callable | None = None,
) -> Operator:
    """An operator of the MoE layer, which works without torch_npu, too: with a fake implementation and an any-device fallback.

    Args:
        schema: of the operator, without its namespace.
        fake: the fake implementation where torch_npu is not loaded, or has none.
        fallback: the kernel for any device; the reference.
        differentiable: the fallback is composed of operators that torch differentiates and batches; its derivatives and its rule for
            vmap are theirs. A gradient that torch_npu has for NPU tensors keeps precedence.
        autograd: the kernel under Autograd of an operator that records a gradient of its own.
        vmap: how the operator is called on a batch, if not as what its fallback is composed of.
        ge: the GE types it lowers to.
        refined_fake: see `Operator`.
    """
    kernels: dict[str, Callable] = {"CompositeExplicitAutograd": fallback, "Meta": fake}
    operator = Operator(schema, fallback, kernels, tuple(ge), refined_fake)
    if differentiable:
        kernels["Autograd"] = _composed_derivatives(operator, fallback)
        kernels["FuncTorchBatched"] = _composed_batches(operator, fallback)
    if autograd is not None:
        kernels["Autograd"] = autograd
    if vmap is not None:
        kernels.update(transforms.vmap_kernels(schema, lambda: operator.overload, vmap))
    return operator


def of_torch_npu(
    name: str, reference: Callable, *, ge: Sequence[GeKernel] = (), namespace: str = NAMESPACE
) -> Operator:
    """An operator that torch_npu alone defines: schema, fake implementation and gradient are torch_npu's; the reference computes it.

    Args:
        name: without its namespace, with the overload's if it is not the default one.
        reference: takes the schema's parameters, on CPU tensors; a ScalarType comes as a torch.dtype.
        ge: the GE types it lowers to.
        namespace: see `Operator`.
    """
    return Operator(name, reference, ge=tuple(ge), namespace=namespace)


def copying(in_place: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The reference of the form that leaves its first argument as it is, and changes a copy of it."""

    @functools.wraps(in_place)
    def copied(changed: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return in_place(changed.clone(), *args, **kwargs)

    copied.__doc__ = f"As {in_place.__name__}, in a copy of the first argument."
    return copied


def _composed_derivatives(operator: Operator, fallback: Callable) -> Callable:
    """The kernel under Autograd: with a derivative to take it is the fallback's own operators that are recorded.

    A call that a device's kernel serves and the fallback does not has results all the same; to ask for their gradient is an error.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if not transforms.is_differentiated(*given):
            return transforms.below_autograd(operator.overload, *args, **kwargs)
        try:
            return fallback(*args, **kwargs)
        except (ValueError, NotImplementedError) as error:
            refused = error
        # Without a kernel of the device's own it is the fallback that is called here, and raises the same error.
        return transforms.without_gradient(
            transforms.below_autograd(operator.overload, *args, **kwargs), given, why=refused
        )

    return _named(call, operator, "autograd")


def _composed_batches(operator: Operator, fallback: Callable) -> Callable:
    """The kernel under FuncTorchBatched: the fallback's own operators, each by its rule; what it does not serve sample by sample."""
    rule = transforms.each_sample(lambda: operator.overload)
    by_sample = transforms.vmap_kernels(operator.schema, lambda: operator.overload, rule)["FuncTorchBatched"]

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return fallback(*args, **kwargs)
        except (ValueError, NotImplementedError):
            return by_sample(*args, **kwargs)

    return _named(call, operator, "batched")


def _named(call: Callable, operator: Operator, what: str) -> Callable:
    call.__name__ = call.__qualname__ = f"{operator.name.replace('.', '_')}_{what}"
    return call


def qualname_of(overload: torch._ops.OpOverload) -> str:
    """`Operator.qualname` of an operator of the dispatcher: "aten::add.Tensor", without a suffix for the default overload."""
    schema = overload._schema
    return f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name


def is_defined(operator: Operator) -> bool:
    """Has anybody defined the operator's schema?"""
    return compat.schema_of(operator.qualname) is not None
