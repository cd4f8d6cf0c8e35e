"""What differs between versions of torch and torch_npu, in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch.library import Library

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""The version of torch, (2, 13)."""

SingleLevelFunction: Any = torch.autograd.function._SingleLevelFunction
"""The base of a torch.autograd.Function that a kernel under Autograd applies: torch.func has set its level up already there."""


def schema_of(qualname: str) -> torch._C.FunctionSchema | None:
    """The schema of an operator, "npu::name" or "npu::name.overload", or None if nobody has defined it."""
    name, _, overload = qualname.partition(".")
    try:
        return torch._C._get_schema(name, overload)
    except RuntimeError:
        return None


def has_argument(operator: torch._ops.OpOverload, name: str) -> bool:
    """Does an operator's schema have this argument?"""
    return any(argument.name == name for argument in operator._schema.arguments)


def given_by_name(schema: torch._C.FunctionSchema, args: Iterable[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an operator's call by their names, without defaults."""
    return {**dict(zip((argument.name for argument in schema.arguments), args)), **kwargs}


def define(library: Library, schema: str) -> None:
    """Define an operator, promising torch.compile what it can be promised (the tag came with torch 2.2)."""
    tag = getattr(torch.Tag, "pt2_compliant_tag", None)
    library.define(schema, **({} if tag is None else {"tags": (tag,)}))


def untraced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel for the dispatcher that Dynamo leaves alone, as it does one in C++.

    Where its graph breaks, a compiled function calls operators eagerly, and Dynamo would take up the Python frames behind them to compile
    these, too. `torch._dynamo.disable` does the same, but imports torch._dynamo, which takes longer than all the rest of an eager program.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        callback = _frames.set_eval_frame(None)
        try:
            return kernel(*args, **kwargs)
        finally:
            _frames.set_eval_frame(callback)

    _leave_out(call.__code__)
    return call


_frames: Any = torch._C._dynamo.eval_frame


def _leave_out(code: CodeType) -> None:
    """Tell Dynamo to execute the frames of this code as they are; up to torch 2.6 by another name."""
    if hasattr(_frames, "skip_code"):
        _frames.skip_code(code)
    else:
        action = _frames._FrameAction
        _frames.set_code_exec_strategy(code, _frames._FrameExecStrategy(action.SKIP, action.DEFAULT))


def impl(library: Library, name: str, function: Callable[..., Any], key: str) -> None:
    """Register a kernel over one that is there, untraced.

    Up to torch 2.5 `Library.impl` refuses a key that Python has registered before (as torch_npu does for Meta); later it does not.
    The record it looks at is set aside for the moment of the call, and stays the former's: this library's end leaves it.
    """
    record = f"{library.ns}/{name}/{key}"
    replaced = record in torch.library._impls
    torch.library._impls.discard(record)
    library.impl(name, untraced(function), key)
    if replaced:
        library._op_impls.discard(record)


def destroy(library: Library, defined: Iterable[str] = ()) -> None:
    """Take back all that a library has registered; `torch.ops` forgets the operators it has `defined`.

    Up to torch 2.3 `Library` has no method for it, and `torch.ops` keeps handles of operators that are gone.
    """
    if hasattr(library, "_destroy"):
        library._destroy()
        return
    del library.m  # the dispatcher's registrations end with this object
    torch.library._impls.difference_update(library._op_impls)
    library._op_impls.clear()
    handles = vars(getattr(torch.ops, library.ns))
    for name in defined:
        handles.pop(name.partition(".")[0], None)


def restore(name: str, function: Callable[..., Any], key: str) -> None:
    """Put a kernel in Python of the namespace npu in force again that was there before one that is destroyed.

    The dispatcher does that itself; but under a mode (FakeTensorMode) torch calls the function that was registered last, and keeps it
    when its library ends. Registering the former for a moment makes it the last.
    """
    library = Library("npu", "IMPL")
    handle: Any = library.m  # Library.impl itself warns that a kernel is overridden, which is what is meant here
    handle.impl(name, key, function)
    destroy(library)


def has_kernel(qualname: str, key: str) -> bool:
    """Has an operator a kernel under this very dispatch key, whoever has registered it? False if nobody has defined the operator."""
    return schema_of(qualname) is not None and torch._C._dispatch_has_kernel_for_dispatch_key(qualname, key)


def kernel_below(qualname: str, key: str) -> Callable[..., Any] | None:
    """The kernel now in force under a dispatch key, to be called after another is registered over it: (keys, *args, **kwargs).

    None up to torch 2.8, which has no way to ask for it.
    """
    if not hasattr(torch.library, "get_kernel"):
        return None
    return torch.library.get_kernel(qualname, key).call_boxed


def is_cpu_autocast_enabled() -> bool:
    """Is torch.autocast("cpu") in force? Up to torch 2.3 each device has a function of its own."""
    return torch.is_autocast_enabled("cpu") if TORCH >= (2, 4) else torch.is_autocast_cpu_enabled()


def group_name(group: ProcessGroup) -> str:
    """The name of a process group; up to torch 2.1 its Python side keeps it."""
    return (
        group.group_name if hasattr(group, "group_name") else torch.distributed.distributed_c10d._world.pg_names[group]
    )


def is_compiling() -> bool:
    """Is the caller being traced by torch.compile or torch.export?"""
    compiler = getattr(torch, "compiler", None)
    if compiler is not None and hasattr(compiler, "is_compiling"):
        return compiler.is_compiling()
    return torch._dynamo.is_compiling()
