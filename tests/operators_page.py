"""The page of torch_npu's operators that are served, from their declarations.

`python tests/operators_page.py` writes the tables of docs/operators.md; beside torch_npu with TORCH_DEVICE_BACKEND_AUTOLOAD=0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import marked

from moe_graph import operators
from moe_graph.operators import not_served
from moe_graph.operators.declaration import Operator

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operators.md"
BEGIN, END = "<!-- operators: begin -->", "<!-- operators: end -->"


def tables(declared: Iterable[Operator]) -> str:
    """A table for each folder of operators, with a row for each module: its operators, the GE types they lower to, what it computes."""
    text = []
    for room, of_room in groupby(sorted(declared, key=_place), key=lambda operator: operator.room):
        text += ["", f"## {room.capitalize()}", "", "| operator | in a GE graph | what it is |", "|---|---|---|"]
        for _, of_module in groupby(of_room, key=lambda operator: operator.reference.__module__):
            text.append(_row(list(of_module)))
    return "\n".join(text).strip()


def without_service() -> str:
    """The table of the operators that have a document and are not served."""
    rows = [f"| {', '.join(f'`{name}`' for name in names)} | {reason} |" for reason, names in not_served.by_reason()]
    return "\n".join(["## Documented and not served", "", "| operator | why |", "|---|---|", *rows])


def page() -> str:
    """What stands between the markers."""
    return f"{tables(operators.every().values())}\n\n{without_service()}"


def _place(operator: Operator) -> tuple[str, str, str]:
    return operator.room, operator.reference.__module__, operator.qualname


def _row(of_module: list[Operator]) -> str:
    names = [operator.name if operator.namespace == "npu" else operator.qualname for operator in of_module]
    types = sorted({kernel.type for operator in of_module for kernel in operator.ge})
    first = " ".join(of_module[0].document.split("\n\n")[0].split())
    what = re.sub(r"^`[^`]*`: ", "", first).rstrip(":").replace("|", "\\|")
    return f"| {', '.join(f'`{name}`' for name in names)} | {', '.join(types)} | {what} |"


def between_markers(text: str) -> str | None:
    """What stands between the markers of the page, None if they are missing."""
    return marked.between(text, BEGIN, END)


if __name__ == "__main__":
    PAGE.write_text(marked.written(PAGE.read_text(), BEGIN, END, page(), PAGE.name))
