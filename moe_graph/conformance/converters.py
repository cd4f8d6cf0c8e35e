"""torchair's own converters of torch_npu's operators, file by file: which GE types each writes, and which of them the engine computes.

Read from the sources in torchair's folder ge_converter/custom: `ge.TYPE(...)` and `torchair.ge.custom_op("TYPE", ...)`. A file that
writes no type at all (it refuses, or hands its input on) has all its types. `python -m moe_graph.conformance.converters` prints the table.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDER = "_ge_concrete_graph/ge_converter/custom"


def written_types(source: str) -> set[str]:
    """The GE types that a converter's source writes, by the names of torchair's functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr == "custom_op" and node.args and isinstance(node.args[0], ast.Constant):
            found.add(str(node.args[0].value))
        elif isinstance(node.func.value, ast.Name) and node.func.value.id == "ge" and node.func.attr != "custom_op":
            found.add(node.func.attr)
    return found


def files() -> Iterator[Path]:
    """torchair's files of custom converters. Raises ModuleNotFoundError where torchair is not installed."""
    spec = importlib.util.find_spec("torchair")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchair is not installed: torch_npu's wheel has it")
    # The front door's own folder, or torch_npu's, which `torchair` is an alias of once torch_npu is imported.
    yield from sorted(p for p in (Path(spec.origin).parent / FOLDER).glob("*.py") if p.name != "__init__.py")


def table() -> Mapping[str, tuple[set[str], set[str]]]:
    """File name without .py -> (the GE types that it writes, those of them that the engine has no kernel for)."""
    from moe_graph.engine import kernels, registry
    from moe_graph.engine.graph import CONST_TYPES

    assert kernels  # registers them
    # Constants are the graph's own; torchair's function of this type has another name.
    known = {*registry.known_types(), *CONST_TYPES}
    functions = {"dequant_bias": "DequantBias"}
    rows = {}
    for path in files():
        types = {functions.get(t, t) for t in written_types(path.read_text(encoding="utf-8"))} - set(CONST_TYPES)
        rows[path.stem] = types, types - known
    return rows


def main() -> int:
    """Print the table: a file, its types, those without a kernel in brackets; then the counts."""
    rows = table()
    for name, (types, missing) in rows.items():
        print(f"{name:45} {' '.join(f'[{t}]' if t in missing else t for t in sorted(types))}")
    print(
        f"{sum(not missing for _, missing in rows.values())} of {len(rows)} files have kernels for all their GE types"
    )
    return 0


if __name__ == "__main__":
    import torch_npu

    assert torch_npu  # makes `torchair` importable
    sys.exit(main())
