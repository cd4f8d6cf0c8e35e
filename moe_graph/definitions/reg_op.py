"""Definitions from REG_OP text, as operators' `*_proto.h` files and torchair's generated functions have it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from moe_graph.definitions.definition import DYNAMIC, OPTIONAL, REQUIRED, Attribute, Definition, Port

_START = re.compile(r"\bREG_OP\(\s*(\w+)\s*\)")
_CLAUSE = re.compile(r"\.\s*(\w+)\s*\(")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_INPUTS = {"INPUT": REQUIRED, "OPTIONAL_INPUT": OPTIONAL, "DYNAMIC_INPUT": DYNAMIC}
_OUTPUTS = {"OUTPUT": REQUIRED, "DYNAMIC_OUTPUT": DYNAMIC}
_NAME = re.compile(r"\w+")
_DTYPE = re.compile(r"\bDT_\w+")
# Other names in use for a data type.
_ALIASES = {
    "DT_FLOAT32": "DT_FLOAT",
    "DT_FP32": "DT_FLOAT",
    "DT_HALF": "DT_FLOAT16",
    "DT_FP16": "DT_FLOAT16",
    "DT_BFLOAT16": "DT_BF16",
    "DT_FLOAT64": "DT_DOUBLE",
    "DT_FP8_E5M2": "DT_FLOAT8_E5M2",
    "DT_FP8_E4M3FN": "DT_FLOAT8_E4M3FN",
    "DT_FLOAT8_E4M3": "DT_FLOAT8_E4M3FN",
    "DT_FLOAT_E1M2": "DT_FLOAT4_E1M2",
    "DT_COMPLEXT64": "DT_COMPLEX64",
}
_CLAUSES = {"ATRR": "ATTR"}  # as torchair's text has it once
_KINDS = {"int": "Int", "float": "Float", "bool": "Bool"}


def parse(text: str) -> list[Definition]:
    """Every REG_OP of the text. Raises ValueError, which names the operator, for a clause that cannot be read."""
    text = without_comments(text)
    starts = list(_START.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return [_definition(start[1], text[start.end() : end]) for start, end in zip(starts, ends)]


def without_comments(text: str) -> str:
    """C++ text less its comments."""
    return _COMMENT.sub("", text)


def _definition(ge_type: str, clauses: str) -> Definition:
    inputs, outputs, attributes = [], [], []
    for clause, arguments in calls(clauses):
        what = _CLAUSES.get(clause, clause)
        if what == "OP_END_FACTORY_REG":
            break
        name = _NAME.search(arguments[0]) if arguments else None
        if name is None or len(arguments) < 2:
            raise ValueError(f"REG_OP({ge_type}): .{what}({', '.join(arguments)}) needs a name and a type")
        if what in _INPUTS:
            inputs.append(Port(name[0], _INPUTS[what], dtypes(arguments[1])))
        elif what in _OUTPUTS:
            outputs.append(Port(name[0], _OUTPUTS[what], dtypes(arguments[1])))
        elif what in ("ATTR", "REQUIRED_ATTR"):
            default = ", ".join(arguments[2:]) if what == "ATTR" else None
            try:
                attributes.append(Attribute(name[0], _KINDS.get(arguments[1], arguments[1]), default))
            except ValueError as error:
                raise ValueError(f"REG_OP({ge_type}): attribute {error}") from None
        elif what != "DATATYPE":
            raise ValueError(
                f"REG_OP({ge_type}): .{what} is not known; known: {', '.join((*_INPUTS, *_OUTPUTS, 'ATTR', 'REQUIRED_ATTR'))}"
            )
    return Definition(ge_type, tuple(inputs), tuple(outputs), tuple(attributes))


def calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """The calls of a chain, `.NAME(a, b).NAME(c)`: each name with its arguments as text."""
    at = 0
    while (match := _CLAUSE.search(text, at)) is not None:
        arguments, at = _arguments(text, match.end())
        yield match[1], arguments


def _arguments(text: str, start: int) -> tuple[list[str], int]:
    """What stands between the parentheses, split at its own commas, and where they close."""
    parts, depth, quoted, at = [""], 0, False, start
    while at < len(text):
        letter = text[at]
        at += 1
        quoted ^= letter == '"'
        if not quoted:
            if letter == ")" and depth == 0:
                break
            depth += (letter in "({[") - (letter in ")}]")
            if letter == "," and depth == 0:
                parts.append("")
                continue
        parts[-1] += letter
    return [part.strip() for part in parts if part.strip()], at


def dtypes(text: str) -> tuple[str, ...]:
    """GE's names of the data types that a text lists, each once; none for a group of them, such as TensorType::ALL()."""
    return tuple(dict.fromkeys(_ALIASES.get(name, name) for name in _DTYPE.findall(text)))
