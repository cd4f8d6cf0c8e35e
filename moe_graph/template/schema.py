"""An operator's schema, and what follows from it: GE's definition, the converter's arguments, calls to try it with."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

# Type in a schema -> GE's kind of attribute, torchair's function that makes one, the annotation of the engine's kernel, and values
# of samples.
_ATTRIBUTES = {
    "int": ("Int", "Int", "int", ("2", "3")),
    "SymInt": ("Int", "Int", "int", ("2", "3")),
    "float": ("Float", "Float", "float", ("0.5", "2.0")),
    "bool": ("Bool", "Bool", "bool", ("True", "False")),
    "str": ("String", "Str", "str", ('"sample"', '"another"')),
    "int[]": ("ListInt", "ListInt", "list[int]", ("[1, 2]", "[3]")),
    "SymInt[]": ("ListInt", "ListInt", "list[int]", ("[1, 2]", "[3]")),
    "float[]": ("ListFloat", "ListFloat", "list[float]", ("[0.5, 2.0]", "[1.0]")),
    "bool[]": ("ListBool", "ListBool", "list[bool]", ("[True, False]", "[True]")),
}
_INPUTS = {"Tensor": "INPUT", "Tensor?": "OPTIONAL_INPUT", "Tensor[]": "DYNAMIC_INPUT"}
_ANNOTATIONS = {"Tensor": "Tensor", "Tensor?": "Tensor | None", "Tensor[]": "list[Tensor]"}

_TENSOR = "torch.randn(rows, 8).to(dtype)"


@dataclass(frozen=True)
class Argument:
    """An argument: name, type in the schema, default as it is written there (None: none), whether it is given by name alone."""

    name: str
    type: str
    default: str | None
    by_name: bool = False

    @property
    def is_input(self) -> bool:
        """Is it a tensor, an optional one, or a list of them?"""
        return self.type in _INPUTS

    @property
    def clause(self) -> str:
        """Its clause of the REG_OP text."""
        if self.is_input:
            return f".{_INPUTS[self.type]}({self.name}, TensorType({{DT_FLOAT16, DT_BF16, DT_FLOAT}}))"
        kind = _ATTRIBUTES[self.type][0]
        if self.default is None:
            return f".REQUIRED_ATTR({self.name}, {kind})"
        default = {"True": "true", "False": "false"}.get(self.default, self.default)
        return f".ATTR({self.name}, {kind}, {default.replace('[', '{').replace(']', '}')})"

    @property
    def attribute(self) -> str:
        """What makes the node's attribute of it."""
        return f"attr.{_ATTRIBUTES[self.type][1]}({self.name})"

    @property
    def parameter(self) -> str:
        """As a parameter of a Python function."""
        annotation = _ANNOTATIONS[self.type] if self.is_input else _ATTRIBUTES[self.type][2]
        return f"{self.name}: {annotation}" + ("" if self.default is None else f" = {self.default}")

    @property
    def kernel_parameter(self) -> str:
        """As a parameter of a kernel of the host engine: an optional input has None for its default."""
        return f"{self.parameter} = None" if self.type == "Tensor?" and self.default is None else self.parameter

    def sample(self, given: bool) -> str:
        """A value as it is written in a test, `rows` and `dtype` being names there; `given`: not the default."""
        if self.type == "Tensor[]":
            return f"[{_TENSOR}, {_TENSOR}]"
        if self.is_input:
            return _TENSOR if given or self.type == "Tensor" else "None"
        if self.default is not None and not given:
            return self.default
        return next(value for value in _ATTRIBUTES[self.type][3] if value != self.default)


@dataclass(frozen=True)
class Schema:
    """A schema `name(arguments) -> Tensor` or `-> (Tensor, Tensor)`.

    Attributes:
        name: the operator's, without its namespace
        text: the whole, as it was given
        arguments: in order
        outputs: how many tensors it returns
    """

    name: str
    text: str
    arguments: tuple[Argument, ...]
    outputs: int

    @property
    def ge_type(self) -> str:
        """The GE type that it is lowered to: "ScaleRows" of scale_rows."""
        return "".join(word.capitalize() for word in self.name.split("_"))


def parse(text: str) -> Schema:
    """Read a schema. Raises ValueError that says what cannot be read, or which type a template does not cover."""
    match = re.fullmatch(r"\s*([a-z]\w*)\s*\((.*)\)\s*->\s*(.+?)\s*", text, re.DOTALL)
    if match is None:
        raise ValueError(f'schema must be like "scale_rows(Tensor x, float factor=1.0) -> Tensor", got {text!r}')
    returns = [part.strip().split(" ")[0] for part in match[3].strip("()").split(",")]
    if any(part != "Tensor" for part in returns):
        raise ValueError(
            f"schema: a template covers operators that return tensors (-> Tensor, -> (Tensor, Tensor)), got {match[3]}"
        )
    before, _, after = (part.strip(", ") for part in match[2].partition("*"))
    arguments = (*(_argument(part) for part in _parts(before)), *(_argument(part, True) for part in _parts(after)))
    if not any(argument.type == "Tensor" for argument in arguments):
        raise ValueError("schema: a template needs a Tensor argument, of whose shape the results are")
    for word in (match[1], *(argument.name for argument in arguments)):
        if keyword.iskeyword(word):
            raise ValueError(f"schema: {word} is a word of Python, which is no name for an operator or an argument")
    return Schema(match[1], " ".join(text.split()), arguments, len(returns))


def _parts(arguments: str) -> list[str]:
    """Split at the commas that are not within brackets."""
    parts = re.split(r",\s*(?![^\[]*\])", arguments.strip())
    return [part.strip() for part in parts if part.strip()]


def _argument(text: str, by_name: bool = False) -> Argument:
    match = re.fullmatch(r"([A-Za-z]+(?:\[\d*\])?\??)\s+(\w+)(?:\s*=\s*(.+))?", text)
    kind = re.sub(r"\[\d+\]", "[]", match[1]) if match is not None else ""
    if match is None or kind not in (*_INPUTS, *_ATTRIBUTES):
        raise ValueError(f"schema: argument {text!r}: a template covers {', '.join((*_INPUTS, *_ATTRIBUTES))}")
    return Argument(match[2], kind, match[3], by_name)
