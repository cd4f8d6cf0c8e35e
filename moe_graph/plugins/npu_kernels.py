"""Kernels on NPU tensors of operators of one's own. They are kept here until the simulated device, if it runs, serves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable)

_kernels: dict[str, Callable] = {}
_serve: Callable[[str, Callable], None] | None = None


def npu_kernel(operator: str | torch._ops.OpOverload) -> Callable[[Function], Function]:
    """The decorated function computes an operator on the simulated device's NPU tensors; it is called with CPU tensors on the same memory.

    The operator needs its schema and fake implementation (`torch.library.define`, `register_fake`) from whoever defines it; its library may
    lack a kernel for this machine. What the function writes to an argument is written, what it returns becomes an NPU tensor. It takes
    part in captures, the report and fault injection as other operators do. On an NPU, and without the simulated device, it changes nothing.

    Args:
        operator: "namespace::name", with ".overload" if it is not the default one, or the overload itself.

    Raises:
        ValueError: if `operator` is no such name, or has a kernel by this decorator already.
    """
    name = operator.name() if isinstance(operator, torch._ops.OpOverload) else operator
    namespace, separator, rest = name.partition("::")
    if not (separator and namespace and rest):
        raise ValueError(f'operator must be "namespace::name", got {name!r}')
    name = name.removesuffix(".default")

    def declare(function: Function) -> Function:
        if name in _kernels and _kernels[name] is not function:
            raise ValueError(f"{name} already has a kernel, {_kernels[name].__qualname__}")
        if name not in _kernels:
            _kernels[name] = function
            if _serve is not None:
                _serve(name, function)
        return function

    return declare


def serve_with(serve: Callable[[str, Callable], None]) -> None:
    """Hand every kernel, those that are there and those to come, to `serve(name, function)`."""
    global _serve
    _serve = serve
    for name, function in _kernels.items():
        serve(name, function)
