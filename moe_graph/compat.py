"""What differs between versions of torch and torch_npu, in one place."""

from __future__ import annotations

import torch
from torch.library import Library


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


def define(library: Library, schema: str) -> None:
    """Define an operator, promising torch.compile what it can be promised (the tag came with torch 2.2)."""
    tag = getattr(torch.Tag, "pt2_compliant_tag", None)
    library.define(schema, **({} if tag is None else {"tags": (tag,)}))


def impl(library: Library, name: str, function: object, key: str) -> None:
    """Register a kernel over one that is there.

    Up to torch 2.5 `Library.impl` refuses a key that Python has registered before (as torch_npu does for Meta); later it does not.
    The record it looks at is set aside for the moment of the call, and stays the former's: this library's end leaves it.
    """
    record = f"{library.ns}/{name}/{key}"
    replaced = record in torch.library._impls
    torch.library._impls.discard(record)
    library.impl(name, function, key)
    if replaced:
        library._op_impls.discard(record)


def is_compiling() -> bool:
    """Is the caller being traced by torch.compile or torch.export?"""
    compiler = getattr(torch, "compiler", None)
    if hasattr(compiler, "is_compiling"):
        return compiler.is_compiling()
    return torch._dynamo.is_compiling()
