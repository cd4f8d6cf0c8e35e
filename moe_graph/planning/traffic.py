"""Bytes that one operator reads and writes, from the shapes of its operands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from moe_graph.foundation import compat
from moe_graph.planning import formats

# Of their first operand these read no more than they return; those write into it no more than what they are given.
_PICKING = frozenset("embedding index_select gather index".split())
_SCATTERING = frozenset(
    "index_put index_put_ index_copy index_copy_ scatter scatter_ scatter_update scatter_update_ npu_scatter_nd_update "
    "npu_scatter_nd_update_".split()
)
_MAKING_ROOM = frozenset("empty empty_like empty_strided new_empty new_empty_strided".split())


def tensors(values: Any) -> list[Tensor]:
    """The tensors among nested arguments or results, each once."""
    return list({id(value): value for value in tree_leaves(values) if isinstance(value, Tensor)}.values())


def size(tensor: Tensor) -> int:
    """Bytes of a tensor's elements, with the padding of a private format."""
    return formats.elements(tensor) * tensor.element_size()


def total(values: Iterable[Tensor]) -> int:
    """Bytes of the elements of all of them."""
    return sum(map(size, values))


def is_view(operator: torch._ops.OpOverload) -> bool:
    """Is the result a view of an argument, so that nothing is launched?"""
    returns = operator._schema.returns
    return bool(returns) and all(one.alias_info is not None and not one.alias_info.is_write for one in returns)


def read_and_written(operator: torch._ops.OpOverload, args: Any, kwargs: Any, result: Any) -> tuple[int, int]:
    """Bytes of the operands, and of the results; of tables that are looked up or written in places, those of the places.

    0 of a view, and of memory that is only made.

    Of a cache that an operator writes tokens into nothing is counted: which places, the values say.
    """
    name = operator._schema.name.partition("::")[2]
    if is_view(operator) or name in _MAKING_ROOM:
        return 0, 0
    kept = caches(operator, args, kwargs)
    places, shapes = {id(value) for value in kept}, [value.shape for value in kept]
    operands = [value for value in tensors((args, kwargs)) if id(value) not in places]
    results = [value for value in tensors(result) if value.shape not in shapes]
    if not results and not written_to(operator, args, kwargs):
        return 0, 0  # a question about a tensor
    if name in _PICKING and operands:
        return total(results) + total(operands[1:]), total(results)
    if name in _SCATTERING and operands:
        return total(operands[1:]), size(operands[-1])
    return total(operands), total(results)


def written_to(operator: torch._ops.OpOverload, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that the operator writes into."""
    return _arguments(operator, args, kwargs, _is_written)


def caches(operator: torch._ops.OpOverload, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that are caches by their names; some operators write into them without their schema saying so."""
    return _arguments(
        operator, args, kwargs, lambda argument: "cache" in argument.name and "index" not in argument.name
    )


def _arguments(operator: torch._ops.OpOverload, args: Any, kwargs: Any, wanted: Callable[[Any], bool]) -> list[Tensor]:
    names = [argument.name for argument in operator._schema.arguments if wanted(argument)]
    if not names:
        return []
    given = compat.given_by_name(operator._schema, args, kwargs)
    return tensors([given.get(name) for name in names])


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write
