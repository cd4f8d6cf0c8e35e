"""The API reference builds without a warning, offline, and has an entry with a docstring for every public name."""

from __future__ import annotations

import ast
import html.parser
import importlib.util
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import moe_graph
from moe_graph.commands.table import COMMANDS

CHECKOUT = Path(__file__).parents[2]
# Every module that a user imports from. Where a module has no __all__, what has no underscore is public.
MODULES = (
    "moe_graph",
    "moe_graph.dumps",
    "moe_graph.engine",
    "moe_graph.family",
    "moe_graph.meta",
    "moe_graph.passes",
    "moe_graph.plugins",
    "moe_graph.simulator",
    "moe_graph.simulator.faults",
    "moe_graph.simulator.report",
    "moe_graph.testing",
)
_MISSING = [
    name
    for name in ("mkdocs", "mkdocstrings", "mkdocstrings_handlers", "material")
    if not importlib.util.find_spec(name)
]


def parsed(module: str) -> ast.Module:
    """The source of a module, or of a package's __init__."""
    parts = module.split(".")[1:]
    folders = {"meta": CHECKOUT / "meta", "converters": CHECKOUT / "converters"}
    path = folders.get(parts[0], CHECKOUT / "moe_graph" / parts[0]) if parts else CHECKOUT / "moe_graph"
    path = path.joinpath(*parts[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


def public_names(module: str) -> dict[str, tuple[str, str]]:
    """Public name -> (module, name) where it is defined. Read, not imported: importing the simulator starts a device."""
    imported, defined, listed = {}, [], None
    for node in parsed(module).body:
        if isinstance(node, ast.ImportFrom):
            imported.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.append(node.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = ast.literal_eval(node.value)
    names = [name for name in defined if not name.startswith("_")] if listed is None else listed
    return {name: imported.get(name, (module, name)) for name in names}


PUBLIC = {f"{module}.{name}": place for module in MODULES for name, place in public_names(module).items()}
PUBLIC.update({f"moe_graph.{name}": (module, name) for name, module in moe_graph._LAZY.items()})


def definition(place: tuple[str, str]) -> ast.AST | None:
    """The statement that defines a name; None for a module or a name that is assigned."""
    module, name = place
    return next((node for node in parsed(module).body if getattr(node, "name", None) == name), None)


class Entries(html.parser.HTMLParser):
    """The text that stands in a page below each heading of an entry, up to the next heading, without code."""

    def __init__(self) -> None:
        super().__init__()
        self.text: dict[str, str] = {}
        self.external: list[str] = []
        self._entries: list[str] = []
        self._heading = False
        self._code = 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self._heading, self._entries = True, [given.get("id", "")]
            self.text.setdefault(self._entries[0], "")
        elif tag in ("pre", "code"):
            self._code += 1
        loaded = given.get("src") or (given.get("href") if tag == "link" else None) or ""
        if re.match("(https?:)?//", loaded):
            self.external.append(loaded)

    def handle_endtag(self, tag):
        if re.fullmatch("h[1-6]", tag):
            self._heading = False
        elif tag in ("pre", "code"):
            self._code -= 1

    def handle_data(self, data):
        if self._entries and not self._heading and not self._code:
            self.text[self._entries[0]] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if _MISSING:
        pytest.skip(f"needs {', '.join(_MISSING)}: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=CHECKOUT,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr and "ERROR" not in run.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Entries]:
    read = {}
    for path in sorted(site.glob("*.html")):
        read[path.name] = Entries()
        read[path.name].feed(path.read_text())
    return read


@pytest.fixture(scope="module")
def inventory(site) -> dict[str, str]:
    """Name -> PAGE#ANCHOR, of the inventory that other projects' Sphinx and MkDocs link by."""
    raw = (site / "objects.inv").read_bytes()
    body = zlib.decompress(raw.split(b"\n", 4)[4]).decode()
    rows = (re.fullmatch(r"(\S+) py:\w+ -?\d+ (\S+) .*", line) for line in body.splitlines())
    return {row[1]: row[2].replace("$", row[1]) for row in rows if row}


@pytest.mark.slow
def test_every_public_name_has_an_entry_with_its_docstring(inventory, pages):
    assert {"moe_graph.moe_re_routing", "moe_graph.trace", "moe_graph.dumps.read", "moe_graph.testing.lower"} <= set(
        PUBLIC
    )
    assert len(PUBLIC) > 50
    without = []
    for public, (module, name) in PUBLIC.items():
        # Of a function that has its module's name (moe_graph.status) the reference knows the place where it is defined.
        places = [inventory[known] for known in (f"{module}.{name}", public) if known in inventory]
        texts = [pages[page].text.get(anchor, "") for page, _, anchor in (place.partition("#") for place in places)]
        if not any(len(text.split()) >= 3 for text in texts):
            without.append(public)
    assert without == []


@pytest.mark.slow
def test_the_pages_load_nothing_from_a_network(pages):
    assert len(pages) >= 12
    assert {page: read.external for page, read in pages.items() if read.external} == {}


@pytest.mark.slow
def test_the_pages_take_their_text_from_the_checkout(site):
    assert "Develop, compile, test and debug Ascend" in (site / "index.html").read_text()
    assert re.search(r"\[A, H\], any dtype", (site / "operator.html").read_text())
    commands = (site / "commands.html").read_text()
    for name in COMMANDS:
        assert f"usage: moe-graph {name}" in commands
    from moe_graph import family

    layer = (site / "family.html").read_text()
    for operator in family.OPERATORS:
        assert f"npu::{operator.name}(" in layer


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, message",
    [
        (
            ("# Graph dumps", "# Graph dumps\n\n<!-- README.md: No such section -->"),
            "README.md has no section 'No such section'",
        ),
        (("moe_graph.dumps.read\n", "moe_graph.dumps.raed\n"), "moe_graph.dumps.raed"),
        (("# Graph dumps", "# Graph dumps\n\n[gone](gone.md)"), "gone.md"),
    ],
    ids=["section", "name", "link"],
)
def test_what_is_not_there_ends_the_build(tmp_path, change, message):
    if _MISSING:
        pytest.skip(f"needs {', '.join(_MISSING)}: pip install '.[docs]'")
    before, after = change
    page = (CHECKOUT / "docs" / "dumps.md").read_text()
    assert before in page
    for name in ("mkdocs.yml", "setup.cfg", "README.md", "moe_graph", "meta", "converters"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    (tmp_path / "mkdocs.yml").unlink()
    config = (CHECKOUT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"(?m)^nav:\n(  - .*\n)+", "nav:\n  - dumps.md\n", config))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "dumps.md").write_text(page.replace(before, after))
    for name in ("from_the_checkout.py", "reference.css", "images"):
        (tmp_path / "docs" / name).symlink_to(CHECKOUT / "docs" / name)
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", tmp_path / "site"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode != 0
    assert message in run.stderr


def _documented() -> list[tuple[str, ast.AST]]:
    found = ((public, definition(place)) for public, place in PUBLIC.items())
    return [(public, node) for public, node in found if node is not None]


def test_public_names_and_their_methods_have_docstrings():
    documented = _documented()
    assert len(documented) > 50
    without = []
    for public, node in documented:
        members = node.body if isinstance(node, ast.ClassDef) else []
        functions = [member for member in members if isinstance(member, ast.FunctionDef) and member.name[0] != "_"]
        without += [public] * (not ast.get_docstring(node))
        without += [f"{public}.{function.name}" for function in functions if not ast.get_docstring(function)]
    assert without == []


def test_fields_of_public_records_are_described():
    without = []
    for public, node in _documented():
        if isinstance(node, ast.ClassDef):
            fields = [ast.unparse(member.target) for member in node.body if isinstance(member, ast.AnnAssign)]
            text = ast.get_docstring(node) or ""
            without += [f"{public}.{field}" for field in fields if not re.search(rf"(?m)^    {field}: ", text)]
    assert without == []
