"""Registration of everything this package adds to torch, torch_npu and torchair: declared here, done once, undone whole.

What is already there stays: torch_npu's schemas, its NPU kernels, its fake implementations. What is missing is added: the schema where
torch_npu is not loaded, the any-device fallback, autograd. Of `npu_moe_re_routing` the fake implementation and the converter are replaced:
torch_npu's check nothing, ours refuse what no product takes.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch.library import Library

from moe_graph import operators
from moe_graph.converters import TORCHAIR_MODULES, install_if_loaded, uninstall
from moe_graph.foundation import compat, contract, import_hooks
from moe_graph.meta import fake_re_routing
from moe_graph.operators.declaration import is_defined
from moe_graph.re_routing import autograd, fallback, sharding

RE_ROUTING = operators.Operator(
    contract.SCHEMA,
    fallback.re_routing,
    {
        "CompositeExplicitAutograd": fallback.re_routing,
        "Meta": fake_re_routing,
        "Autograd": autograd.re_routing,
        **autograd.vmap,
    },
)
OPERATORS = (RE_ROUTING, *operators.OPERATORS)


@dataclass
class _Registered:
    """What `register` has done, for `unregister` to take back. `defined`: operators whose schema is ours; `replaced`: those with a fake
    implementation of torch_npu's below ours."""

    definitions: Library
    kernels: Library
    defined: frozenset[str]
    replaced: set[str] = field(default_factory=set)


_lock = threading.RLock()
_registered: _Registered | None = None


def register() -> None:
    """Register everything that can be registered now, and arrange for the rest when torch_npu or torchair is imported.

    Idempotent, safe in threads and in any order with torch, torch_npu and torchair. `import moe_graph` calls it.
    """
    with _lock:
        _register_kernels()
        import_hooks.around_import("torch_npu", _while_torch_npu_loads)
        for name in TORCHAIR_MODULES:
            import_hooks.around_import(name, _while_torchair_loads)
        import_hooks.around_import(sharding.MODULE, _while_dtensor_loads)
        install_if_loaded()


def unregister() -> None:
    """Take every registration back. torch_npu and torchair are left as they would be without this package."""
    with _lock:
        for name in ("torch_npu", *TORCHAIR_MODULES, sharding.MODULE):
            import_hooks.remove_hook(name)
        uninstall()
        _unregister_kernels()


def defines_schema() -> bool:
    """Is the schema of `npu_moe_re_routing` ours (torch_npu is not loaded), not torch_npu's?"""
    return _registered is not None and RE_ROUTING.name in _registered.defined


def is_registered() -> bool:
    """Are our kernels and, where they are missing, schemas in force?"""
    return _registered is not None


def _register_kernels() -> None:
    global _registered
    if _registered is not None:
        return
    missing = [operator for operator in OPERATORS if not is_defined(operator)]
    definitions, kernels = Library(contract.NAMESPACE, "FRAGMENT"), Library(contract.NAMESPACE, "IMPL")
    _registered = _Registered(definitions, kernels, frozenset(operator.name for operator in missing))
    for operator in missing:
        compat.define(definitions, operator.schema)
    for operator in OPERATORS:
        for key, kernel in operator.kernels.items():
            if key == "Meta" and compat.has_kernel(operator.qualname, key):
                # torch_npu's stays: it traces types and modes that a device computes, and the fallback does not.
                replacement = kernel if operator is RE_ROUTING else _refined_fake(operator)
                if replacement is None:
                    continue
                kernel = replacement
                _registered.replaced.add(operator.name)
            compat.impl(kernels, operator.name, kernel, key)
    sharding.declare()


def _refined_fake(operator: operators.Operator) -> Callable[..., Any] | None:
    """The operator's addition to torch_npu's fake implementation, or None: it has none, or torch_npu's is not where it is looked for.

    torch_npu's is called as the Python function that it is: under a mode of torch's, the dispatcher's handle of a kernel in Python
    leads to the one registered last.
    """
    theirs = _fake_of_torch_npu(operator)
    return functools.partial(operator.refined_fake, theirs) if operator.refined_fake and theirs else None


def _fake_of_torch_npu(operator: operators.Operator) -> Callable[..., Any] | None:
    module = sys.modules.get("torch_npu.op_plugin.meta._meta_registrations")
    return getattr(module, f"{operator.name.partition('.')[0]}_meta", None)


def _unregister_kernels() -> None:
    global _registered
    if _registered is None:
        return
    sharding.forget()
    replaced = [operator for operator in OPERATORS if operator.name in _registered.replaced]
    compat.destroy(_registered.kernels)
    compat.destroy(_registered.definitions, _registered.defined)
    _registered = None
    for operator in replaced:
        theirs = _fake_of_torch_npu(operator)
        if theirs is not None:
            compat.restore(operator.name, theirs, "Meta")


@contextmanager
def _while_torch_npu_loads() -> Iterator[None]:
    """torch_npu defines the operator itself and would fail on ours: step aside, and come back also if its import fails."""
    with _lock:
        uninstall()  # it sits on the operator that goes
        _unregister_kernels()
    try:
        yield
    finally:
        with _lock:
            _register_kernels()
            install_if_loaded()


@contextmanager
def _while_torchair_loads() -> Iterator[None]:
    yield
    with _lock:
        install_if_loaded()


@contextmanager
def _while_dtensor_loads() -> Iterator[None]:
    yield
    with _lock:
        if _registered is not None:
            sharding.declare()
