"""Definitions from op_host's C++: classes derived from OpDef, as an Ascend C operator's `*_def.cpp` has them."""

from __future__ import annotations

import re

from moe_graph.definitions.definition import PORT_KINDS, Attribute, Definition, Port
from moe_graph.definitions.reg_op import calls, dtypes, without_comments

_CLASS = re.compile(r"\bclass\s+(\w+)\s*:\s*public\s+(?:ops::)?OpDef\b")
_STATEMENT = re.compile(r"\bthis\s*->\s*(Input|Output|Attr)\s*\(\s*\"(\w+)\"\s*\)([^;]*);")
_NO_VALUE = ("AttrType", "Version", "Comment")


def parse(text: str) -> list[Definition]:
    """Every operator of the text. Raises ValueError, which names operator and argument, for a kind that is not known."""
    text = without_comments(text)
    starts = list(_CLASS.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return [_definition(start[1], text[start.end() : end]) for start, end in zip(starts, ends)]


def _definition(ge_type: str, body: str) -> Definition:
    ports: dict[str, list[Port]] = {"Input": [], "Output": []}
    attributes = []
    for what, name, rest in _STATEMENT.findall(body):
        chain = list(calls(rest))
        try:
            if what == "Attr":
                attributes.append(_attribute(name, chain))
            else:
                ports[what].append(_port(name, dict(chain)))
        except ValueError as error:
            raise ValueError(f"{ge_type}: {what.lower()} {error}") from None
    return Definition(ge_type, tuple(ports["Input"]), tuple(ports["Output"]), tuple(attributes))


def _port(name: str, chain: dict[str, list[str]]) -> Port:
    kind = chain.get("ParamType", ["REQUIRED"])[0].rpartition("::")[2].lower()
    if kind not in PORT_KINDS:
        raise ValueError(f"{name}: ParamType must be one of {', '.join(PORT_KINDS).upper()}, got {kind.upper()}")
    listed = chain.get("DataType") or chain.get("DataTypeList") or [""]
    return Port(name, kind, dtypes(listed[0]))


def _attribute(name: str, chain: list[tuple[str, list[str]]]) -> Attribute:
    optional = any(call == "AttrType" and arguments[0].endswith("OPTIONAL") for call, arguments in chain)
    kind, arguments = next(((call, given) for call, given in chain if call not in _NO_VALUE), ("", []))
    return Attribute(name, kind, ", ".join(arguments) if optional else None)
