"""Registration of everything this package adds to torch, torch_npu and torchair: declared here, done once, undone whole.

What is already there stays: torch_npu's schema and its NPU kernel. What is missing is added: the schema where torch_npu is not loaded,
the any-device fallback, autograd. What is there but checks nothing is replaced: the fake implementation and the converter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.library import Library

from moe_graph import autograd, compat, contract, converters, fallback, import_hooks
from moe_graph.meta import fake_re_routing

# Dispatch key -> kernel. CompositeExplicitAutograd serves each device that has no kernel of its own, so torch_npu's (PrivateUse1)
# keeps precedence.
KERNELS: dict[str, Callable] = {
    "CompositeExplicitAutograd": fallback.re_routing,
    "Meta": fake_re_routing,
    "Autograd": autograd.re_routing,
}


@dataclass
class _Registered:
    """What `register` has done, for `unregister` to take back."""

    definition: Library | None
    kernels: Library


_lock = threading.RLock()
_registered: _Registered | None = None


def register() -> None:
    """Register everything that can be registered now, and arrange for the rest when torch_npu or torchair is imported.

    Idempotent, safe in threads and in any order with torch, torch_npu and torchair. `import moe_graph` calls it.
    """
    with _lock:
        _register_kernels()
        import_hooks.around_import("torch_npu", _while_torch_npu_loads)
        for name in converters.TORCHAIR_MODULES:
            import_hooks.around_import(name, _while_torchair_loads)
        converters.install_if_loaded()


def unregister() -> None:
    """Take every registration back. torch_npu and torchair are left as they would be without this package."""
    with _lock:
        for name in ("torch_npu", *converters.TORCHAIR_MODULES):
            import_hooks.remove_hook(name)
        converters.uninstall()
        _unregister_kernels()


def defines_schema() -> bool:
    """Is the operator's schema ours (torch_npu is not loaded), not torch_npu's?"""
    return _registered is not None and _registered.definition is not None


def _register_kernels() -> None:
    global _registered
    if _registered is not None:
        return
    definition = None
    if compat.schema_of(contract.QUALNAME) is None:
        definition = Library(contract.NAMESPACE, "FRAGMENT")
        compat.define(definition, contract.SCHEMA)
    _registered = _Registered(definition, Library(contract.NAMESPACE, "IMPL"))
    for key, kernel in KERNELS.items():
        compat.impl(_registered.kernels, contract.NAME, kernel, key)


def _unregister_kernels() -> None:
    global _registered
    if _registered is None:
        return
    _registered.kernels._destroy()
    if _registered.definition is not None:
        _registered.definition._destroy()
    _registered = None


@contextmanager
def _while_torch_npu_loads() -> Iterator[None]:
    """torch_npu defines the operator itself and would fail on ours: step aside, and come back also if its import fails."""
    with _lock:
        converters.uninstall()  # it sits on the operator that goes
        _unregister_kernels()
    try:
        yield
    finally:
        with _lock:
            _register_kernels()
            converters.install_if_loaded()


@contextmanager
def _while_torchair_loads() -> Iterator[None]:
    yield
    with _lock:
        converters.install_if_loaded()
