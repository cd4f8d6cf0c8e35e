"""Definitions by GE type: those that were declared, then those that torchair carries.

torchair has a function for each of some 1,700 GE types, generated from its REG_OP text, which is the function's docstring. It is read from
the installed torch_npu wheel as text: neither torch_npu nor torchair is imported. Attributes that the function writes and its text lacks
belong to the definition, too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import replace

from moe_graph.definitions import newer, reg_op, torchair_sources
from moe_graph.definitions.definition import Attribute, Definition

_REG_OP = re.compile(r'"""\s*(REG_OP\((\w+)\).*?)"""(.*?)(?=\n@auto_convert|\Z)', re.DOTALL)
_WRITTEN = re.compile(r'op\.attr\["([a-z]\w*)"\]\.(\w+(?:\.\w+)?)')
_KINDS = {
    "i": "Int",
    "f": "Float",
    "b": "Bool",
    "s": "String",
    "dt": "Type",
    "list.i": "ListInt",
    "list.f": "ListFloat",
}
_declared: dict[str, Definition] = {}


def declare(definitions: Iterable[Definition]) -> None:
    """Take these definitions; each stands before torchair's of its type.

    Raises ValueError, and takes none, if one has a type that was declared with another definition.
    """
    definitions = list(definitions)
    for definition in definitions:
        if _declared.get(definition.type, definition) != definition:
            raise ValueError(f"GE type {definition.type} is declared already, with another definition")
    _declared.update((definition.type, definition) for definition in definitions)


def find(ge_type: str) -> Definition | None:
    """The definition of a GE type, for instance "MoeReRouting"; None if nobody has declared it and torchair does not know it."""
    return _declared.get(ge_type) or _newer().get(ge_type) or _of_torchair(ge_type)


@functools.cache
def _newer() -> dict[str, Definition]:
    return {definition.type: definition for definition in reg_op.parse(newer.REG_OPS)}


@functools.cache
def _of_torchair(ge_type: str) -> Definition | None:
    found = _texts().get(ge_type)
    if found is None:
        return None
    text, body = found
    definition = reg_op.parse(text)[0]
    names = {attribute.name for attribute in definition.attributes}
    more = {name: _KINDS[kind] for name, kind in _WRITTEN.findall(body) if name not in names and kind in _KINDS}
    return replace(
        definition, attributes=(*definition.attributes, *(Attribute(name, kind, "") for name, kind in more.items()))
    )


@functools.cache
def _texts() -> dict[str, tuple[str, str]]:
    """GE type -> its REG_OP text in torchair, and the function's body."""
    found: dict[str, tuple[str, str]] = {}  # of a type with two texts the first: the kernels agree with it
    for match in (match for source in torchair_sources.sources() for match in _REG_OP.finditer(source)):
        found.setdefault(match[2], (match[1].replace("\\n", "\n"), match[3]))
    return found
