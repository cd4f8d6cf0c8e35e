"""Modules and tensors without memory: described by shape, dtype and device, as torch's fake tensors.

A tensor is described by torch itself: on the device "meta" (`torch.empty(4, 7168, device="meta")`), or as a FakeTensor. What is computed
of such tensors has a shape and a dtype and no values; reading a value is an error.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from moe_graph.planning import formats


def is_described(*values: Any) -> bool:
    """Is there a tensor without memory among these, or among the parameters and buffers of a module?"""
    return any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in _tensors(values))


def fake_mode(*values: Any) -> FakeTensorMode:
    """The mode that the fake tensors among these belong to; a new one if there are none."""
    found = next((tensor.fake_mode for tensor in _tensors(values) if isinstance(tensor, FakeTensor)), None)
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True) if found is None else found


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in tree_leaves(values):
        if isinstance(value, nn.Module):
            yield from value.parameters()
            yield from value.buffers()
        elif isinstance(value, Tensor):
            yield value


def on_device(mode: FakeTensorMode, device: str, values: Any) -> Any:
    """A copy of tensors, numbers and modules (lists and dicts of them) whose tensors are described on `device`.

    Nothing is allocated, and the values given are not changed. Parameters that modules share are shared in the copy, too.
    """
    memo: dict[int, Any] = {}

    def fake(tensor: Tensor, place: Any = device) -> Tensor:
        if id(tensor) not in memo:
            memo[id(tensor)] = _fake(mode, place, tensor)
        return memo[id(tensor)]

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return fake(value)
        if isinstance(value, nn.Module):
            for tensor in (*value.parameters(), *value.buffers()):
                fake(tensor)
            with _Copying(fake):
                return copy.deepcopy(value, memo)
        return value

    return tree_map(copied, values)


def _fake(mode: FakeTensorMode, device: Any, tensor: Tensor) -> Tensor:
    with mode, torch.no_grad():
        made: Tensor = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    formats.carry(tensor, made)
    made.requires_grad_(tensor.requires_grad)
    if isinstance(tensor, nn.Parameter):
        made = nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made


class _Copying(TorchFunctionMode):
    """While a module is copied: tensors that are neither its parameters nor its buffers, but attributes, are described as well.

    They stay on their device, as `module.to` leaves them there; only of those on "meta" it is not known.
    """

    def __init__(self, fake: Callable[..., Tensor]) -> None:
        super().__init__()
        self._fake = fake

    def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.__deepcopy__:
            return self._fake(args[0]) if args[0].is_meta else self._fake(args[0], args[0].device)
        return function(*args, **(kwargs or {}))


@contextmanager
def modules_convert() -> Iterator[None]:
    """Let `module.to(...)` convert fake parameters: torch refuses, as its own tables hold weak references to each of them."""
    original = torch.utils.weakref
    torch.utils.weakref = types.SimpleNamespace(getweakrefs=_references)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.weakref = original  # type: ignore[attr-defined]


def _references(tensor: Tensor) -> list[Any]:
    import weakref

    return [] if isinstance(tensor, FakeTensor) else weakref.getweakrefs(tensor)
