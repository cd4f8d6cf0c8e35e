"""How torchair's functions for GE operators are declared: which parameters are inputs, and the attributes' defaults.

Read from the sources in the installed torch_npu wheel, as text: neither torch_npu nor torchair is imported.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from typing import Any

from moe_graph.definitions import torchair_sources

_DECORATOR = "@auto_convert_to_tensor("
_NOT_ATTRIBUTES = frozenset({"dependencies", "node_name"})


@dataclass(frozen=True)
class Input:
    """An input of an operator. dynamic: a list of any length. index: a number passed for it becomes an int64 constant."""

    name: str
    dynamic: bool
    index: bool


@dataclass(frozen=True)
class Signature:
    """`inputs` in order, then `attributes` with the values they have when they are not given; `floats` are those declared float."""

    inputs: tuple[Input, ...]
    attributes: dict[str, Any]
    floats: frozenset[str]

    def value(self, name: str, value: Any) -> Any:
        """An attribute's value as GE keeps it: an integer given for a float is one."""
        return float(value) if name in self.floats and isinstance(value, int) else value


def available() -> bool:
    """Are torchair's sources installed? Without them a "py" dump names no inputs and shows no defaults."""
    return bool(torchair_sources.sources())


@functools.cache
def signature(kind: str) -> Signature | None:
    """Of the function for GE type `kind`; None if torch_npu is not installed or declares none."""
    for source in torchair_sources.sources():
        at = source.find(f"\ndef {kind}(")
        if at >= 0:
            return _parse(source, at + 1, kind)
    return None


def _parse(source: str, at: int, kind: str) -> Signature | None:
    decorated = source.rfind(_DECORATOR, 0, at)
    if decorated < 0 or source[decorated + len(_DECORATOR) : at].count("\ndef "):
        return None
    header = source[decorated : _closing(source, at + len("def ") + len(kind)) + 1]
    try:
        (function,) = ast.parse(f"{header}: pass").body
    except (SyntaxError, ValueError):
        return None
    if not (isinstance(function, ast.FunctionDef) and isinstance(function.decorator_list[-1], ast.Call)):
        return None
    decorator = function.decorator_list[-1]
    dynamic = ast.literal_eval(decorator.args[0])
    types = next((keyword.value for keyword in decorator.keywords if keyword.arg == "inputs_tensor_type"), None)
    index = [ast.unparse(element).endswith("TT_INDEX_NUMBER") for element in types.elts] if types is not None else []
    parameters = [parameter.arg for parameter in function.args.args]
    inputs = tuple(
        Input(name, many, at < len(index) and index[at]) for at, (name, many) in enumerate(zip(parameters, dynamic))
    )
    defaults = dict(zip(reversed(parameters), reversed(function.args.defaults)))
    defaults.update(zip((parameter.arg for parameter in function.args.kwonlyargs), function.args.kw_defaults))
    taken = _NOT_ATTRIBUTES.union(parameters[: len(inputs)])
    known = {name: _default(value) for name, value in defaults.items() if name not in taken and value is not None}
    declared = (*function.args.args, *function.args.kwonlyargs)
    floats = frozenset(p.arg for p in declared if p.annotation is not None and ast.unparse(p.annotation) == "float")
    given = {name: value for name, value in known.items() if value is not None}
    return Signature(inputs, given, floats)


def _default(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)


def _closing(source: str, opening: int) -> int:
    """Where the parenthesis at `opening` closes. Declarations hold no parentheses in text."""
    depth = 0
    for at in range(opening, len(source)):
        depth += (source[at] == "(") - (source[at] == ")")
        if not depth:
            return at
    return len(source)
