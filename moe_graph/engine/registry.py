"""The registry of kernels, keyed by GE operator type.

A kernel is a function whose signature is the operator's definition:

    @kernel("GatherV2")
    def gather_v2(x: Tensor, indices: Tensor, axis: Tensor, *, batch_dims: int = 0) -> Tensor:

Positional parameters are GE inputs by their GE names: `Tensor` required, `Tensor | None = None` optional, `Tensors` (or `list[Tensor]`)
dynamic (x0, x1, ...).
Keyword-only parameters are GE attributes by name with their defaults; an annotation `GeType` decodes a data type. A
keyword-only parameter `node` receives the planned node (its output dtypes and shapes). The result is a tensor, or a tuple of them
for several outputs; a list inside the tuple, or as the whole, is a dynamic output.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from moe_graph.engine.errors import GraphError
from moe_graph.operators.ge import Tensors

# Annotation of an attribute -> kinds of AttrDef it takes. A whole number may stand for a truth value or a real number.
_KINDS = {
    "bool": ("b", "i"),
    "int": ("i", "dt", "b"),
    "float": ("f", "i"),
    "str": ("s",),
    "list": ("list", "list_list_int", "list_list_float"),
    "Tensor": ("t",),
    "GeType": ("dt", "i"),
}

_DYNAMIC = re.compile(r"\bTensors\b|\b[Ll]ist\[(torch\.)?Tensor\]")


@dataclass(frozen=True)
class Input:
    """An input of a kernel: its GE name, and whether it may be absent or is a list."""

    name: str
    optional: bool
    dynamic: bool


@dataclass(frozen=True)
class Attribute:
    """An attribute of a kernel: its GE name, its default (`inspect.Parameter.empty` if required), whether it is a data type,
    and the kinds of AttrDef that fit its annotation (empty: any)."""

    name: str
    default: object
    is_type: bool
    kinds: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Kernel:
    """A kernel: the function, and what its signature says of the GE operator. `assigns`: the inputs it writes to."""

    function: Callable
    family: str
    inputs: tuple[Input, ...]
    attributes: tuple[Attribute, ...]
    wants_node: bool
    assigns: tuple[str, ...] = ()


_kernels: dict[str, Kernel] = {}


def kernel(
    *ge_types: str, assigns: str | Iterable[str] = (), family: str | None = None
) -> Callable[[Callable], Callable]:
    """Register the decorated function as the kernel of these GE operator types. A type can be registered once.

    `assigns` names the inputs, references of GE, that the function writes to; all other inputs it must leave as they are.
    `family`: under which the kernel is counted; its module's name by default.
    """

    def register(function: Callable) -> Callable:
        made = _describe(function, (assigns,) if isinstance(assigns, str) else tuple(assigns), family)
        for ge_type in ge_types:
            if ge_type in _kernels:
                raise ValueError(f"GE type {ge_type} already has a kernel, {_kernels[ge_type].function.__qualname__}")
            _kernels[ge_type] = made
        return function

    return register


def _describe(function: Callable, assigns: tuple[str, ...] = (), family: str | None = None) -> Kernel:
    inputs, attributes, wants_node = [], [], False
    for parameter in inspect.signature(function).parameters.values():
        annotation = _text(parameter.annotation)
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            optional = parameter.default is not inspect.Parameter.empty
            name = parameter.name.rstrip("_")  # GE also uses names that Python keeps for itself: else_
            inputs.append(Input(name, optional, dynamic=_DYNAMIC.search(annotation) is not None))
        elif parameter.name == "node":
            wants_node = True
        else:
            kinds = _KINDS.get(annotation.partition("|")[0].partition("[")[0].strip(), ())
            attributes.append(Attribute(parameter.name, parameter.default, "GeType" in annotation, kinds))
    family = family or function.__module__.rpartition(".")[2]
    unknown = set(assigns) - {parameter.name for parameter in inputs}
    if unknown:
        raise ValueError(f"kernel {function.__qualname__} has no input {unknown.pop()!r} to assign to")
    return Kernel(function, family, tuple(inputs), tuple(attributes), wants_node, assigns)


def _text(annotation: object) -> str:
    """An annotation as text, also of a module without `from __future__ import annotations`."""
    if isinstance(annotation, str):
        return annotation
    if annotation is Tensors:
        return "Tensors"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("torch.", "")


def get(ge_type: str) -> Kernel | None:
    """The kernel of a GE operator type, or None."""
    return _kernels.get(ge_type)


def known_types() -> Iterable[str]:
    """All GE operator types that have a kernel."""
    return _kernels.keys()


def bind_inputs(kernel: Kernel, fed: list[tuple[str, int | None]]) -> tuple[int | None | list[int], ...]:
    """Which fed input goes to which parameter. `fed` holds (GE name, position or None if unfed) in the node's order.

    Returns for each parameter a position, a list of positions (dynamic), or None (absent).
    Raises GraphError if a required input is missing or the kernel does not know an input.
    """
    by_name = dict(fed)
    if len(by_name) != len(fed):
        names = [name for name, _ in fed]
        raise GraphError(f"two inputs are named {next(name for name in names if names.count(name) > 1)!r}")
    single = {parameter.name for parameter in kernel.inputs if not parameter.dynamic}
    used: set[str] = set()
    bound: list[int | None | list[int]] = []
    for parameter in kernel.inputs:
        if parameter.dynamic:
            numbered = {
                int(name[len(parameter.name) :]): name
                for name in by_name
                if name not in single and re.fullmatch(re.escape(parameter.name) + "[0-9]{1,9}", name)
            }
            names = [numbered[number] for number in sorted(numbered)]
            used.update(names)
            bound.append([by_name[name] for name in names if by_name[name] is not None])
            continue
        position = by_name.get(parameter.name)
        used.add(parameter.name)
        if position is None and not parameter.optional:
            raise GraphError(f"input {parameter.name!r} is missing")
        bound.append(position)
    for name, position in fed:
        if name not in used and position is not None:
            raise GraphError(f"the kernel knows no input {name!r}; it has {[p.name for p in kernel.inputs]}")
    return tuple(bound)
