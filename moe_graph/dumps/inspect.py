"""`python -m moe_graph inspect DUMP...`: what dumps of graphs hold, as tables or as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from moe_graph.dumps import reading_signatures
from moe_graph.dumps.model import Graph, Node
from moe_graph.dumps.reading import files, newest, read_file, share_sources
from moe_graph.dumps.reading_errors import DumpError
from moe_graph.dumps.summary import plain, summarise, tensor_dict
from moe_graph.foundation.output_path import output_path

SCHEMA = "moe_graph inspect 1"
# Option -> the module whose `write(graph, path)` makes the file.
PICTURES = {"html": "html", "svg": "svg", "dot": "dot", "onnx": "onnx_file"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 if a dump cannot be read or a picture cannot be written."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check_pictures(parser, options)
    graphs, failed = read_all(options.dumps)
    if any(graph.kind == "py" for graph in graphs) and not reading_signatures.available():
        print(
            "py dumps: names of inputs and defaults of attributes need torchair's sources: pip install torch_npu",
            file=sys.stderr,
        )
    wanted = {name: getattr(options, name) for name in PICTURES if getattr(options, name) is not None}
    if wanted and graphs and len(options.dumps) == 1 and os.path.isdir(options.dumps[0]):
        # Of a folder the picture is of the graph that was optimized last.
        try:
            graphs = share_sources([*read_file(newest(options.dumps[0])), *graphs])[:1]
        except DumpError:
            failed = True  # said above
    if wanted and len(graphs) != 1 and not failed:
        parser.error(
            f"{', '.join('--' + name for name in wanted)}: a picture is of one graph, got {len(graphs)}; name one dump"
        )
    for name, path in wanted.items() if len(graphs) == 1 else ():
        failed |= not _draw(name, graphs[0], path)
    if options.json:
        print(
            json.dumps(
                {"schema": SCHEMA, "graphs": [_json(graph, options) for graph in graphs]}, indent=2, allow_nan=False
            )
        )
    elif options.check:
        failed |= _checked(options.dumps, graphs)
    elif graphs and not wanted:
        from moe_graph.dumps.inspect_tables import show

        show([(graph, chosen(graph, options) if _wants_nodes(options) else None) for graph in graphs])
    return int(failed)


def read_all(paths: Sequence[str]) -> tuple[list[Graph], bool]:
    """The graphs of all dumps that can be read, with a line on stderr for each that cannot; and whether there was one."""
    graphs, failed = [], False
    for path in paths:
        try:
            found = files(path)
        except DumpError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        for file in found:
            try:
                graphs += read_file(file)
            except DumpError as error:
                print(error, file=sys.stderr)
                failed = True
    return share_sources(graphs), failed


def chosen(graph: Graph, options: argparse.Namespace) -> list[Node]:
    """The nodes that pass every filter."""
    return [
        node
        for node in graph.nodes
        if (options.type is None or fnmatchcase(node.type, options.type))
        and (options.name is None or fnmatchcase(node.name, options.name))
        and (options.source is None or any(options.source in text for text in (*node.source, node.fx)))
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moe-graph inspect",
        description="What dumps of graphs hold: torchair's (txt, pbtxt, py, code of FX graphs) and GE's (ge_onnx_*.pbtxt, "
        "ge_proto_*.txt). Needs no NPU.",
    )
    parser.add_argument("dumps", nargs="+", metavar="DUMP", help="a dump, or a folder of them")
    parser.add_argument("--nodes", action="store_true", help="list the nodes; the filters below do so too")
    parser.add_argument("--type", metavar="GLOB", help="only nodes of these types, e.g. 'Moe*'")
    parser.add_argument("--name", metavar="GLOB", help="only nodes of these names")
    parser.add_argument("--source", metavar="TEXT", help="only nodes with TEXT in their source lines or their FX node")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--check",
        action="store_true",
        help="would GE take the graph: every node against the definition of its type, and shapes (of txt dumps) against the kernels'; "
        "exit status 1 if there is an error",
    )
    for name in PICTURES:
        parser.add_argument(
            f"--{name}",
            type=output_path,
            metavar="FILE",
            help=f"write the graph (a folder's: the one optimized last) to FILE as {name}",
        )
    return parser


def _check_pictures(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program, before anything is read, if a picture would overwrite a dump that it reads, or another picture."""
    taken = {os.path.realpath(file): str(file) for path in options.dumps for file in _named(path)}
    for name in PICTURES:
        path = getattr(options, name)
        if path is None:
            continue
        if os.path.realpath(path) in taken:
            parser.error(
                f"argument --{name}: {path} is {taken[os.path.realpath(path)]} itself, which would be overwritten"
            )
        taken[os.path.realpath(path)] = f"the file of --{name}"


def _named(path: str) -> list[Path]:
    try:
        return files(path)
    except DumpError:
        return []  # said when it is read


def _wants_nodes(options: argparse.Namespace) -> bool:
    return options.nodes or any(value is not None for value in (options.type, options.name, options.source))


def _draw(name: str, graph: Graph, path: Path) -> bool:
    try:
        importlib.import_module(f"moe_graph.dumps.{PICTURES[name]}").write(graph, path)
    except (OSError, ImportError) as error:
        print(f"--{name} {path}: {error}", file=sys.stderr)
        return False
    print(f"{path}: {graph.name}, {len(graph.nodes)} nodes", file=sys.stderr)
    return True


def _checked(paths: Sequence[str], graphs: list[Graph]) -> bool:
    """Print what the checks find; is there an error? They import torch, and stand above this room: by their name."""
    importlib.import_module("moe_graph.commands.table").whole()
    return bool(importlib.import_module("moe_graph.checking.dumps").show(paths, graphs))


def _json(graph: Graph, options: argparse.Namespace) -> dict[str, Any]:
    found = summarise(graph).as_dict()
    if _wants_nodes(options):
        found["nodes"] = [node_dict(node) for node in chosen(graph, options)]
    return found


def node_dict(node: Node) -> dict[str, Any]:
    """A node as JSON holds it. An input is "NODE:OUTPUT", "NODE:-1" for an order without data, null if it is not fed."""
    return {
        "name": node.name,
        "type": node.type,
        "inputs": [None if edge is None else f"{edge.node}:{edge.output}" for edge in node.inputs],
        "input_names": list(node.input_names),
        "outputs": [tensor_dict(tensor) for tensor in node.outputs],
        "attributes": plain(node.attributes),
        "source": list(node.source),
        "fx": node.fx,
    }
