"""Faults put into graphs: `inspect --check` must find them, and nothing in the graphs as they are.

python -m moe_graph run -q tests/graph_faults.py DUMPS ...              of folders with text dumps (kind "txt"); prints a table
python -m moe_graph run -q tests/graph_faults.py SCRIPT.py ARGS ...     of the graphs that a program lowers; of several ranks the first's
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moe_graph.checking import dumps
from moe_graph.checking.finding import ERROR
from moe_graph.checking.graph import check_graph
from moe_graph.checking.shapes import check_shapes
from moe_graph.definitions import known
from moe_graph.dumps.reading_definition import from_definition

STRUCTURE = ("Data", "RefData", "Const", "NetOutput")


def errors(graph: Any) -> list[Any]:
    """The errors of a GraphDef: of its nodes, or, where they have none, of its shapes."""
    checks = (lambda: check_graph(from_definition(graph)), lambda: check_shapes(graph))
    found = ([finding for finding in check() if finding.severity == ERROR] for check in checks)
    return next(filter(None, found), [])


def unknown_type(node: Any) -> bool:
    """A type that is not known."""
    node.type = node.type + "New"
    return True


def unknown_input(node: Any) -> bool:
    """An input by another name."""
    for desc, reference in zip(node.input_desc, node.input):
        if reference:
            desc.name = "never"
            return True
    return False


def input_not_fed(node: Any) -> bool:
    """A required input that is not fed."""
    kinds = {port.name: port.kind for port in known.find(node.type).inputs}
    for at, desc in enumerate(node.input_desc):
        if kinds.get(desc.name) == "required":
            node.input[at] = ""
            return True
    return False


def unknown_attribute(node: Any) -> bool:
    """An attribute by another name."""
    node.attr["never"].i = 1
    return True


def attribute_of_another_kind(node: Any) -> bool:
    """An attribute of another kind."""
    for name in sorted(node.attr):
        if not name.startswith("_"):
            was = node.attr[name].WhichOneof("value")
            node.attr[name].Clear()
            if was == "s":
                node.attr[name].i = 1
            else:
                node.attr[name].s = b"text"
            return True
    return False


def required_attribute_missing(node: Any) -> bool:
    """A required attribute is missing."""
    for attribute in known.find(node.type).attributes:
        if attribute.required and attribute.name in node.attr:
            del node.attr[attribute.name]
            return True
    return False


def one_output_more(node: Any) -> bool:
    """An output more than the type has."""
    if any(port.kind == "dynamic" for port in known.find(node.type).outputs):
        return False
    node.output_desc.add().CopyFrom(node.output_desc[0])
    return True


def another_shape(node: Any) -> bool:
    """An output described with a dimension more."""
    for desc in node.output_desc:
        note = desc.attr["_meta"].s.decode() if "_meta" in desc.attr else ""
        if "torch.Size([" in note and "s" not in note.rpartition("([")[2] and "_fx_tensor_name" in desc.attr:
            desc.attr["_meta"].s = note.replace("torch.Size([", "torch.Size([5, ").encode()
            desc.shape.dim.insert(0, 5) if desc.shape.dim else None
            return True
    return False


# Each changes a node, where it can.
FAULTS: tuple[Callable[[Any], bool], ...] = (
    unknown_type,
    unknown_input,
    input_not_fed,
    unknown_attribute,
    attribute_of_another_kind,
    required_attribute_missing,
    one_output_more,
    another_shape,
)


def walk(graph: Any, each: int | None = None) -> tuple[list[str], list[str], int]:
    """Errors of a graph as it is; faults that are not found in it; how many were put in, at most `each` of a kind over its nodes."""
    as_it_is, missed, total = [str(error) for error in errors(graph)], [], 0
    nodes = [at for at, node in enumerate(graph.op) if node.type not in STRUCTURE and known.find(node.type)]
    for fault in FAULTS:
        places = _spread(nodes, fault, graph)[:each]
        for at in places:
            kept = type(graph.op[at])()
            kept.CopyFrom(graph.op[at])
            fault(graph.op[at])
            if len(errors(graph)) <= len(as_it_is):
                missed.append(f"{fault.__name__} of {kept.name} ({kept.type})")
            graph.op[at].CopyFrom(kept)
        total += len(places)
    return as_it_is, missed, total


def _spread(nodes: list[int], fault: Callable[[Any], bool], graph: Any) -> list[int]:
    """The nodes that have a place for the fault, one of each type first."""
    first: dict[str, int] = {}
    rest = []
    for at in nodes:
        copy = type(graph.op[at])()
        copy.CopyFrom(graph.op[at])
        if not fault(copy):
            continue
        if graph.op[at].type in first:
            rest.append(at)
        else:
            first[graph.op[at].type] = at
    return [*first.values(), *rest]


def once(graphs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Name -> GraphDef; graphs of several ranks or compilations that are equal but for names are one."""
    found, seen = {}, set()
    for name, graph in graphs:
        form = tuple((node.type, tuple(node.input)) for node in graph.op)
        if form not in seen:
            found[name] = graph
        seen.add(form)
    return found


def of_folders(folders: Iterable[str]) -> dict[str, Any]:
    """The text dumps in these folders, by their paths."""
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*.txt"))
    return once((str(path), dumps._definition(path.read_text())) for path in paths)


def of_program(script: str, arguments: list[str]) -> dict[str, Any]:
    """The graphs of GE that a program lowers, by their numbers."""
    import torch_npu  # noqa: F401

    from moe_graph import testing

    recorded: list[Any] = []
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    with testing.recorded(recorded):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:
            assert not ended.code, f"{script} ended with {ended.code}"
    graphs = [graph for graph in recorded if hasattr(graph, "definition")]
    return once((f"{script} {number}", graph.definition) for number, graph in enumerate(graphs, start=1))


def walk_all(graphs: dict[str, Any], each: int) -> tuple[list[str], list[str], int]:
    """`walk` over several, with a row for each graph that has something to tell, and one for all."""
    alarms, lost, count = [], [], 0
    for name, graph in graphs.items():
        as_it_is, missed, total = walk(graph, each)
        if as_it_is or missed or len(graphs) < 20:
            print(
                f"{name}: {len(graph.op)} nodes, {len(as_it_is)} errors; {total - len(missed)} of {total} faults found"
            )
            print("".join(f"  {line}\n" for line in (*as_it_is, *(f"not found: {fault}" for fault in missed))), end="")
        alarms, lost, count = alarms + as_it_is, lost + missed, count + total
    print(f"in all {len(graphs)} graphs, {len(alarms)} errors; {count - len(lost)} of {count} faults found", flush=True)
    return alarms, lost, count


def main(arguments: list[str]) -> int:
    """Print a row for each graph; 1 if a graph has errors or less than 95 % of the faults are found."""
    graphs = of_program(arguments[0], arguments[1:]) if arguments[0].endswith(".py") else of_folders(arguments)
    if int(os.environ.get("RANK", "0")):
        return 0  # the first rank tells
    alarms, lost, count = walk_all(graphs, each=6)
    return int(bool(alarms) or count == 0 or len(lost) > 0.05 * count)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
