"""The house's rooms: no circle between them, one operator one declaration, and each has its document."""

import ast
from pathlib import Path

import pytest

from moe_graph import operators

CHECKOUT = Path(__file__).parents[2]
PLACES = {"moe_graph.meta": CHECKOUT / "meta", "moe_graph.converters": CHECKOUT / "converters"}
FILES = {
    ".".join(("moe_graph", *path.relative_to(CHECKOUT / "moe_graph").with_suffix("").parts)): path
    for path in (CHECKOUT / "moe_graph").rglob("*.py")
}
FILES.update({f"{name}.{path.stem}": path for name, folder in PLACES.items() for path in folder.glob("*.py")})
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, in functions, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {
        name if name in MODULES else name.rpartition(".")[0]
        for name in found
        if name in MODULES or name.rpartition(".")[0] in MODULES
    }


def room(module: str) -> str:
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Nodes that reach themselves."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(arrows[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo.extend(arrows.get(node, ()))
        return seen

    return sorted(node for node in arrows if node in reach(node))


def test_no_circle_between_files():
    arrows = {name: imported(path) - {name, "moe_graph"} for name, path in MODULES.items()}
    # A package's __init__ stands for its public names: a module that imports its own package's sibling does not import these.
    arrows = {name: {to for to in tos if not name.startswith(to + ".")} for name, tos in arrows.items()}
    assert circles(arrows) == []


def test_no_circle_between_rooms():
    arrows: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        arrows.setdefault(room(name), set()).update(
            room(to)
            for to in imported(path)
            if room(to) not in (room(name), "moe_graph")
            # A package's __init__ lists what lies in its rooms.
            and not (path.name == "__init__.py" and room(to).startswith(name + "."))
        )
    assert circles(arrows) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


@pytest.mark.parametrize("operator", operators.every().values(), ids=lambda operator: operator.name)
def test_an_operator_has_a_document_with_its_source(operator):
    assert "source" in operator.document.lower(), (
        "the module's docstring says the shapes, modes, dtypes and their source"
    )
