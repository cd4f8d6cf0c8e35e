"""Definitions by GE type: those that were declared, then those that torchair carries.

torchair has a function for each of some 1,700 GE types, generated from its REG_OP text, which is the function's docstring. It is read from
the installed torch_npu wheel as text: neither torch_npu nor torchair is imported.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from moe_graph.definitions import newer, reg_op
from moe_graph.definitions.definition import Definition

_FOLDER = Path("dynamo", "torchair")
_FILES = (
    Path("_ge_concrete_graph", "auto_generated_ge_raw_ops.py"),
    Path("_ge_concrete_graph", "dynamic_output_ops.py"),
    Path("ge", "_ge_graph.py"),
)
_REG_OP = re.compile(r'"""\s*(REG_OP\((\w+)\).*?)"""', re.DOTALL)
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
    text = _texts().get(ge_type)
    return None if text is None else reg_op.parse(text)[0]


@functools.cache
def _texts() -> dict[str, str]:
    """GE type -> its REG_OP text in torchair."""
    wheel = importlib.util.find_spec("torch_npu")
    if wheel is None or wheel.origin is None:
        return {}
    folder = Path(wheel.origin).parent / _FOLDER
    sources = ((folder / name).read_text() for name in _FILES if (folder / name).is_file())
    return {match[2]: match[1].replace("\\n", "\n") for source in sources for match in _REG_OP.finditer(source)}
