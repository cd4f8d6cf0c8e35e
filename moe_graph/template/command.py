"""`moe-graph new-operator PACKAGE SCHEMA`: write a package with an operator of one's own, its lowering, its kernels and their tests."""

from __future__ import annotations

import argparse
import keyword
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_graph.template import schema, write


def main(argv: Sequence[str]) -> int:
    """Write the files; 0, or 1 if the folder is there or cannot be written. Bad arguments end the program with 2."""
    parser = argparse.ArgumentParser(prog="moe-graph new-operator", description=__doc__.partition(": ")[2])
    parser.add_argument(
        "package", metavar="PACKAGE", help="name of the package, and of the operator's namespace: my_ops"
    )
    parser.add_argument(
        "schema", metavar="SCHEMA", help="'scale_rows(Tensor x, Tensor scale, float factor=1.0) -> Tensor'"
    )
    parser.add_argument("--into", metavar="FOLDER", type=Path, help="a folder that is not there yet (default: PACKAGE)")
    options = parser.parse_args(argv)
    if not options.package.isidentifier() or keyword.iskeyword(options.package):
        parser.error(f"PACKAGE must be a name of Python, got {options.package!r}")
    try:
        parsed = schema.parse(options.schema)
    except ValueError as error:
        parser.error(str(error))
    folder = options.into or Path(options.package)
    try:
        written = write.write(folder, options.package, parsed)
    except OSError as error:
        print(f"moe_graph: {folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, written)))
    print(f"next: cd {folder}; pip install -e .; pytest   (its TODO says what to write)")
    return 0
