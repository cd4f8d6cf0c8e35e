"""A hook of MkDocs: pages take sections of the checkout's own documents, and the commands' help, so that each text stands in one place.

In a page, alone on a line:

    <!-- README.md: Install/Notebooks -->    the text of that section, its headings one level up for each level of the path
    <!-- README.md: -->                   what stands before the first section
    <!-- CHANGELOG.md -->                 the whole document
    <!-- commands -->                     the help of every command
    <!-- family -->                       for every operator of the family its schema, and what its module's docstring says

A section that is not there ends the build. Docstrings are read, without importing a module, from the packages as setup.cfg puts them
together.
"""

from __future__ import annotations

import configparser
import contextlib
import io
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority

_INCLUDE = re.compile(r"^<!-- (\w+\.md)(?:: ?(.*?))? -->$", re.MULTILINE)
_FENCE = re.compile(r"^(?:```|~~~)")


_assembled: list[tempfile.TemporaryDirectory] = []


@event_priority(100)  # before mkdocstrings takes up its configuration
def on_config(config: Any) -> None:
    """Called by MkDocs. moe_graph.meta and moe_graph.converters lie outside of moe_graph/ in the checkout."""
    _assembled.append(tempfile.TemporaryDirectory(prefix="moe_graph_docs_"))
    _assemble(Path(config.config_file_path).parent, Path(_assembled[-1].name))
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_assembled[-1].name]


def on_shutdown() -> None:
    """Called by MkDocs at its end."""
    while _assembled:
        _assembled.pop().cleanup()


def _assemble(root: Path, destination: Path) -> None:
    """The packages' modules where an installation has them."""
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    folders = dict(re.split(r"\s*=\s*", line) for line in setup["options"]["package_dir"].split("\n") if line)
    for name, folder in folders.items():
        target = destination.joinpath(*name.split("."))
        shutil.copytree(root / folder, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by MkDocs for each page."""
    root = Path(config.config_file_path).parent

    def included(match: re.Match) -> str:
        text = (root / match[1]).read_text(encoding="utf-8")
        try:
            chosen = text if match[2] is None else section(text, match[2])
        except KeyError as error:
            raise PluginError(f"{page.file.src_uri}: {match[1]} has no section {error}") from error
        return _links_from_docs(chosen)

    markdown = _INCLUDE.sub(included, markdown)
    for name, written in {"commands": commands, "family": operators}.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", written())
    return markdown


def section(document: str, path: str) -> str:
    """The text below a heading: "Install" of level 2, "Install/Notebooks" of level 3 in it; "" is what stands before the first section.

    Raises KeyError with the heading that is not there.
    """
    lines = list(_with_levels(document))
    level = 1
    start = next(at for at, (depth, _) in enumerate(lines) if depth == 1) + 1
    end = len(lines)
    for level, name in enumerate(filter(None, path.split("/")), 2):
        inside = range(start, end)
        start = next((at + 1 for at in inside if lines[at] == (level, f"{'#' * level} {name}")), -1)
        if start < 0:
            raise KeyError(name)
        end = next((at for at in range(start, end) if 0 < lines[at][0] <= level), end)
    if not path:
        end = next(at for at in range(start, end) if lines[at][0] == 2)
    return "\n".join(line[level - 1 :] if depth else line for depth, line in lines[start:end]).strip()


def _with_levels(document: str) -> Iterator[tuple[int, str]]:
    """Each line with the level of the heading it is, 0 for text; a comment in a block of code is no heading."""
    fenced = False
    for line in document.splitlines():
        fenced ^= bool(_FENCE.match(line))
        heading = None if fenced else re.match(r"#+(?= )", line)
        yield len(heading[0]) if heading else 0, line


def _links_from_docs(text: str) -> str:
    return text.replace("](docs/", "](").replace("](CONTRIBUTING.md", "](contributing.md")


def commands() -> str:
    """A section for each command, with its help as argparse prints it."""
    from moe_graph.commands.table import COMMANDS

    return "\n\n".join(
        f"## {name}\n\n{command.text[0].upper()}{command.text[1:]}.\n\n```text\n{_help(name)}\n```"
        for name, command in COMMANDS.items()
    )


def _help(name: str) -> str:
    from moe_graph.commands import table

    shown = io.StringIO()
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    with mock.patch.dict(os.environ, plain), contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        table.main([name, "--help"])
    return shown.getvalue().strip()


def operators() -> str:
    """A section for each module of the family that declares operators, in the order of the layer."""
    from moe_graph import family

    modules: dict[str, list[str]] = {}
    for operator in family.OPERATORS:
        modules.setdefault(operator.kernels["CompositeExplicitAutograd"].__module__, []).append(operator.schema)
    return "\n\n".join(
        f"## {schemas[0].partition('(')[0]}\n\n::: {module}\n{_TEXT_ALONE}\n```text\n{_wrapped(schemas)}\n```"
        for module, schemas in modules.items()
    )


_TEXT_ALONE = """    options:
      members: false
      show_root_heading: false
      show_root_toc_entry: false
"""


def _wrapped(schemas: list[str]) -> str:
    """A schema in lines that end behind an argument."""
    whole = (re.sub(r"(?<!,) ", "\0", f"npu::{schema}") for schema in schemas)
    lines = (textwrap.fill(schema, 110, subsequent_indent="    ", break_long_words=False) for schema in whole)
    return "\n".join(lines).replace("\0", " ")
