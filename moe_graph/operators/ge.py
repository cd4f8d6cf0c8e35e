"""The GE side of an operator's declaration: which GE type it lowers to, and how GE's names map to the reference's.

A kernel's function has the GE operator's definition for its signature, as `moe_graph.engine.registry` says: positional parameters are
inputs by their GE names, keyword-only ones are attributes. Where names alone differ `renamed` makes that signature; where more does, the
module writes a function.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Tensors = list[Tensor]
"""Annotation of a kernel's dynamic input: GE's x0, x1, ... as one list."""


@dataclass(frozen=True)
class GeType:
    """A GE data type: its name, its numbers in GE's and in the protobuf enum, the torch dtype that carries it, its width in bits."""

    name: str
    ge: int
    proto: int
    torch: torch.dtype
    bits: int

    @property
    def packed(self) -> bool:
        """Is it stored two or more to a byte?"""
        return self.bits < 8

    @property
    def told_as_bytes(self) -> bool:
        """Does FX know its tensors as uint8, so that a description of them may say DT_UINT8?"""
        return self.packed or self.name in ("DT_HIFLOAT8", "DT_FLOAT8_E8M0")


class Planned(Protocol):
    """What a kernel with a parameter `node` is handed: the node of the graph, for the GE types of its inputs."""

    @property
    def inputs(self) -> Sequence[Any]:
        """The descriptors of the inputs, each with its `type`."""


def type_of_input(node: Planned, position: int) -> str:
    """The name of an input's GE type, "" if its descriptor leaves it open. It tells types apart that torch carries alike."""
    known: GeType | None = node.inputs[position].type
    return "" if known is None else known.name


@dataclass(frozen=True)
class GeKernel:
    """A GE operator type and the function that computes it.

    Attributes:
        type: the GE operator's name
        function: its signature is the operator's definition
        assigns: the inputs, references of GE, that the function writes to
        outputs: their names, where torchair carries no definition of the operator: CANN alone knows it, and its converter asks for it
    """

    type: str
    function: Callable
    assigns: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def renamed(function: Callable, without: Collection[str] = (), **ge_names: str) -> Callable:
    """`function` with the parameters named as GE names them: renamed(rms_norm, x="self") takes GE's x for the parameter self.

    `without`: parameters with a default that GE's operator does not have.

    Parameters that are not named keep their names. Inputs (tensors) become positional, all others keyword-only: attributes.
    Raises ValueError for a name that is no parameter of the function.
    """
    signature = inspect.signature(function)
    wrong = {*ge_names.values(), *without} - set(signature.parameters)
    if wrong:
        raise ValueError(
            f"{function.__qualname__} has no parameter {sorted(wrong)}; it has {list(signature.parameters)}"
        )
    ge_name_of = {ours: ge for ge, ours in ge_names.items()}
    inputs: list[tuple[inspect.Parameter, str]] = []
    attributes: list[tuple[inspect.Parameter, str]] = []
    for parameter in signature.parameters.values():
        if parameter.name in without:
            continue
        is_input = "Tensor" in str(parameter.annotation)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if is_input else inspect.Parameter.KEYWORD_ONLY
        made = parameter.replace(name=ge_name_of.get(parameter.name, parameter.name), kind=kind)
        (inputs if is_input else attributes).append((made, parameter.name))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = {ours: value for (_, ours), value in zip(inputs, args)}
        given.update({ge_names.get(name, name): value for name, value in kwargs.items()})
        bound = signature.bind(**given)
        return function(*bound.args, **bound.kwargs)

    call.__signature__ = signature.replace(parameters=[made for made, _ in (*inputs, *attributes)])  # type: ignore[attr-defined]
    return call


def with_results(function: Callable, results: Callable[[Any, dict[str, Any]], Any]) -> Callable:
    """`function` with other results: results(what it returns, its arguments by name). For GE's order of outputs, and its references."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        return results(function(*args, **kwargs), bound.arguments)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call
