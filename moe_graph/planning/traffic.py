"""Bytes that one operator reads and writes, from the shapes of its operands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# Of their first operand these read no more than they return; those write into it no more than what they are given.
_PICKING = frozenset("embedding index_select gather index".split())
_SCATTERING = frozenset(
    "index_put index_put_ index_copy index_copy_ scatter scatter_ scatter_update scatter_update_ npu_scatter_nd_update "
    "npu_scatter_nd_update_".split()
)


def tensors(values: Any) -> list[Tensor]:
    """The tensors among nested arguments or results, each once."""
    return list({id(value): value for value in tree_leaves(values) if isinstance(value, Tensor)}.values())


def size(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return int(tensor.numel()) * tensor.element_size()


def total(values: Iterable[Tensor]) -> int:
    """Bytes of the elements of all of them."""
    return sum(map(size, values))


def is_view(operator: torch._ops.OpOverload) -> bool:
    """Is the result a view of an argument, so that nothing is launched?"""
    returns = operator._schema.returns
    return bool(returns) and all(one.alias_info is not None and not one.alias_info.is_write for one in returns)


def read_and_written(operator: torch._ops.OpOverload, args: Any, kwargs: Any, result: Any) -> tuple[int, int]:
    """Bytes of the operands, and of the results; of tables that are looked up or written in places, those of the places. 0 of a view."""
    if is_view(operator):
        return 0, 0
    operands, results = tensors((args, kwargs)), tensors(result)
    if not results and not written_to(operator, args, kwargs):
        return 0, 0  # a question about a tensor
    name = operator._schema.name.partition("::")[2]
    if name in _PICKING and operands:
        return total(results) + total(operands[1:]), total(results)
    if name in _SCATTERING and operands:
        return total(operands[1:]), size(operands[-1])
    return total(operands), total(results)


def written_to(operator: torch._ops.OpOverload, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that the operator writes into."""
    names = [argument.name for argument in operator._schema.arguments if _is_written(argument)]
    if not names:
        return []
    given = {**dict(zip((argument.name for argument in operator._schema.arguments), args)), **kwargs}
    return tensors([given.get(name) for name in names])


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write
