"""The files of a package, from the texts in package/."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path

from moe_graph.template.schema import Argument, Schema

_TEXTS = Path(__file__).parent / "package"
_TODO = """TODO: say what it computes, its shapes and dtypes. As written by the template it gives copies of its first tensor: write the
reference, then the fake implementation (shapes and dtypes alone), and the same in `moe_graph`'s words in simulated.py.
"""


def files(package: str, schema: Schema) -> dict[str, str]:
    """Path -> text of every file of the package."""
    values = _values(package, schema)
    places = {
        "pyproject.toml": "pyproject.toml.in",
        "README.md": "README.md.in",
        f"{package}/__init__.py": "__init__.py.in",
        f"{package}/{schema.name}.py": "operator.py.in",
        f"{package}/converter.py": "converter.py.in",
        f"{package}/simulated.py": "simulated.py.in",
        f"tests/test_{schema.name}.py": "test.py.in",
    }
    return {path: string.Template((_TEXTS / text).read_text()).substitute(values) for path, text in places.items()}


def write(folder: Path, package: str, schema: Schema) -> list[Path]:
    """Write the package into a new folder, and return its files. Raises FileExistsError if the folder is there already."""
    folder.mkdir(parents=True)
    written = []
    for path, text in files(package, schema).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        written.append(target)
    return written


def _values(package: str, schema: Schema) -> dict[str, str]:
    inputs = [argument for argument in schema.arguments if argument.is_input]
    attributes = [argument for argument in schema.arguments if not argument.is_input]
    first = next(argument.name for argument in inputs if argument.type == "Tensor")
    outputs = ["y"] if schema.outputs == 1 else [f"y{number}" for number in range(1, schema.outputs + 1)]
    clauses = [argument.clause for argument in inputs]
    clauses += [f".OUTPUT({name}, TensorType({{DT_FLOAT16, DT_BF16, DT_FLOAT}}))" for name in outputs]
    clauses += [argument.clause for argument in attributes]
    kernel = [argument.kernel_parameter for argument in sorted(inputs, key=lambda one: one.type == "Tensor?")]
    kernel += ["*"] * bool(attributes) + [argument.parameter for argument in attributes]
    return {
        "package": package,
        "name": schema.name,
        "schema": schema.text,
        "schema_text": json.dumps(schema.text),
        "ge_type": schema.ge_type,
        "todo": _TODO,
        "parameters": _list(schema, lambda argument: argument.parameter),
        "converter_parameters": _list(schema, _untyped),
        "kernel_parameters": ", ".join(kernel),
        "returns": "Tensor" if schema.outputs == 1 else f"tuple[{', '.join(['Tensor'] * schema.outputs)}]",
        "reference": _each(f"{first}.clone()", schema.outputs),
        "fake": _each(f"torch.empty_like({first})", schema.outputs),
        "inputs": ", ".join(f'"{argument.name}": {argument.name}' for argument in inputs),
        "outputs": ", ".join(f'"{name}"' for name in outputs),
        "attributes": ", ".join(f'"{argument.name}": {argument.attribute}' for argument in attributes),
        "clauses": "\n        ".join(clauses),
        "reference_arguments": ", ".join(
            f"{argument.name}={argument.name}" if argument.by_name else argument.name for argument in schema.arguments
        ),
        "defaults": _sample(schema, given=False),
        "given": _sample(schema, given=True),
    }


def _list(schema: Schema, write: Callable[[Argument], str]) -> str:
    """The arguments as parameters, those given by name alone behind a star."""
    first = [write(argument) for argument in schema.arguments if not argument.by_name]
    named = [write(argument) for argument in schema.arguments if argument.by_name]
    return ", ".join([*first, *["*"] * bool(named), *named])


def _untyped(argument: Argument) -> str:
    return argument.name if argument.default is None else f"{argument.name}={argument.default}"


def _each(value: str, outputs: int) -> str:
    return ", ".join([value] * outputs)


def _sample(schema: Schema, given: bool) -> str:
    """A call, without or with what is optional, as it is written in the tests."""
    values = [(argument, argument.sample(given)) for argument in schema.arguments]
    first = ", ".join(value for argument, value in values if not argument.by_name)
    named = ", ".join(f'"{argument.name}": {value}' for argument, value in values if argument.by_name)
    return f"Sample(({first},), {{{named}}})" if named else f"Sample(({first},))"
