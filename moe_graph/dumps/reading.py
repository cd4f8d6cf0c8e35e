"""Read dumps of graphs, whatever wrote them: told apart by what is in the file, not by its name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from moe_graph.dumps import fx_code, ge_onnx, torchair_py
from moe_graph.dumps.model import Graph
from moe_graph.dumps.reading_definition import OUTPUT_TYPE, graph_of, graph_of_nodes
from moe_graph.dumps.reading_errors import DumpError
from moe_graph.dumps.reading_text import Message, parse

# How torchair and GE name their dumps; in a folder everything else is left alone.
DUMPS = ("dynamo_*.txt", "dynamo_*.pbtxt", "dynamo_*.py", "ge_onnx_*.pbtxt", "ge_proto_*.txt")
_TORCHAIR_NAME = re.compile(r"dynamo_(original|optimized)_(.+?)(?:_rank_\d+(?:_pid_\d+)?(?:_ts_\d+)?)?$")

_STAMP = re.compile(r"_ts_\d+$")


def files(path: str | Path) -> list[Path]:
    """The dumps `path` stands for: itself, or those in the folder it is, by name. Raises DumpError if there are none."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted({file for pattern in DUMPS for file in path.glob(pattern) if file.is_file()})
    if not found:
        raise DumpError(f"{path}: no dumps in this folder (looked for {', '.join(DUMPS)})")
    return found


def newest(folder: str | Path) -> Path:
    """The dump in a folder that was written last: of an optimized graph, if there is one. Raises DumpError if there are none."""
    found = files(folder)
    optimized = [file for file in found if _stage(file) == "optimized"]
    return max(optimized or found, key=lambda file: (file.stat().st_mtime_ns, file.name))


def original_of(optimized: Path) -> Path:
    """The dump of the graph as it was lowered, beside that of the graph as torchair optimized it. Raises DumpError if there is none."""
    match = _TORCHAIR_NAME.match(optimized.stem)
    if match is None or match[1] != "optimized":
        raise DumpError(
            f"{optimized}: not torchair's dump of an optimized graph, so there is no original to compare with"
        )
    wanted = _STAMP.sub("", optimized.stem).replace("optimized", "original", 1)
    beside = [
        file
        for file in files(optimized.parent)
        if _STAMP.sub("", file.stem) == wanted and file.suffix == optimized.suffix
    ]
    if not beside:
        raise DumpError(f"{optimized}: there is no {wanted}*{optimized.suffix} beside it")
    # The original is written first; a program may be run again under the same process id.
    before = [file for file in beside if file.stat().st_mtime_ns <= optimized.stat().st_mtime_ns]
    return max(before or beside, key=lambda file: (file.stat().st_mtime_ns, file.name))


def _stage(file: Path) -> str:
    match = _TORCHAIR_NAME.match(file.stem)
    return match[1] if match else ""


def read(path: str | Path) -> list[Graph]:
    """The graphs of a dump, or of every dump in a folder.

    In a folder, graphs without source lines take them from a "py" dump of the same graph (see `share_sources`).
    Raises DumpError, one line that names the file, if one cannot be read.
    """
    return share_sources([graph for file in files(path) for graph in read_file(file)])


def read_file(path: str | Path) -> list[Graph]:
    """The graphs of one dump. Raises DumpError, one line that names the file."""
    path = Path(path)
    try:
        found = _graphs(_text(path), path)
    except DumpError as error:
        raise DumpError(f"{path}: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        # The text's fields have types of their own choice: a message where a number belongs, and so on.
        what = f"{type(error).__name__}: {error}"[:200]
        raise DumpError(f"{path}: not built as a dump of torchair or GE ({' '.join(what.split())})") from error
    match = _TORCHAIR_NAME.match(path.stem)
    stage, name = (match[1], match[2]) if match else ("", path.stem)
    return [
        replace(graph, name=graph.name or name, stage="" if graph.kind == "onnx" else graph.stage or stage)
        for graph in found
    ]


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DumpError(error.strerror or str(error)) from error
    if not raw.strip():
        raise DumpError("the file is empty")
    if b"\0" in raw:
        raise DumpError("a binary file, not a dump of a graph as text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DumpError(f"not UTF-8 at byte {error.start}: not a dump of a graph as text") from error


def _graphs(text: str, path: Path) -> list[Graph]:
    if fx_code.looks_like(text):
        return [replace(graph, kind="fx") for graph in fx_code.graphs_of(text)]
    if torchair_py.looks_like(text) or path.suffix == ".py":
        return [replace(torchair_py.graph_of(text), kind="py")]
    tree = parse(text)
    graphs = [graph for graph in tree.get("graph", ()) if isinstance(graph, dict)]
    if _holds(tree, "op"):
        return [replace(_whole(graph_of(tree)), kind="txt")]
    if any(_holds(graph, "op") for graph in graphs):  # a ModelDef, as GE writes it
        return [replace(graph_of(graph), kind="txt") for graph in graphs]
    if _holds(tree, "node"):
        return [replace(_whole(graph_of_nodes(tree)), kind="pbtxt")]
    if any(_holds(graph, "node") for graph in graphs):
        return [replace(graph, kind="onnx") for graph in ge_onnx.graphs_of(tree)]
    raise DumpError(
        f"holds no operators of a graph (its fields: {', '.join(list(tree)[:5])}): not a dump of torchair or GE"
    )


def _holds(tree: Message, field: str) -> bool:
    values = tree.get(field, [])
    if values and not all(isinstance(value, dict) for value in values):
        raise DumpError(f"field {field!r} holds a plain value: not a dump of torchair or GE")
    return bool(values)


def _whole(graph: Graph) -> Graph:
    """torchair lists its nodes side by side, so that a dump cut off between two reads well: it ends with the graph's output."""
    if not graph.types[OUTPUT_TYPE]:
        raise DumpError(f"the graph has no {OUTPUT_TYPE}: is the dump cut off?")
    return graph


def share_sources(graphs: list[Graph]) -> list[Graph]:
    """Source lines, which only "py" dumps tell, for the other dumps of the same graph.

    Of the same graph: it has the same name, and every node the "py" dump knows a line of is in the other with the same type.
    """
    donors = [graph for graph in graphs if graph.kind == "py"]
    return [_with_sources(graph, donors) if graph.kind != "py" else graph for graph in graphs]


def _with_sources(graph: Graph, donors: list[Graph]) -> Graph:
    for donor in donors:
        sources = {node.name: node for node in donor.nodes if node.source}
        same = all(name in graph.by_name and graph.by_name[name].type == node.type for name, node in sources.items())
        if donor.name == graph.name and sources and same:
            nodes = (
                replace(node, source=sources[node.name].source) if node.name in sources and not node.source else node
                for node in graph.nodes
            )
            return replace(graph, nodes=tuple(nodes))
    return graph
