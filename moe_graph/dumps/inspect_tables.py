"""The tables of `inspect`."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from moe_graph.dumps.model import Graph, Node
from moe_graph.dumps.summary import Conversion, Port, Summary, summarise

PIPED_WIDTH = 160  # columns where the output is no terminal
_STAGES = {"original": "as lowered", "optimized": "after torchair's optimizer"}
_ORIGINS = {
    "model": "the model's own",
    "view": "the model's view, put off",
    "lowering": "inserted by the lowering",
    "unknown": "the dump names no FX node",
}
# Control characters of a dump must not reach the terminal.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


def show(graphs: list[tuple[Graph, list[Node] | None]]) -> None:
    """Print each graph's summary, and its table of nodes where nodes are given."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    console = Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
    for graph, nodes in graphs:
        if nodes is None:
            _summary(console, graph)
        else:
            _title(console, graph)
            console.print(_nodes(nodes))
            console.print(f"{len(nodes)} of {len(graph.nodes)} nodes")


def _title(console: Console, graph: Graph) -> None:
    stage = f", {graph.stage}: {_STAGES[graph.stage]}" if graph.stage in _STAGES else ""
    console.rule(_text(f"{graph.name} ({graph.kind or 'in memory'}{stage}), {len(graph.nodes)} nodes"), align="left")
    if graph.kind == "py":
        console.print("torchair writes the graph as lowered into its optimized py dump, too")


def _summary(console: Console, graph: Graph) -> None:
    found = summarise(graph)
    _title(console, graph)
    console.print(_ports("inputs", found.inputs, found))
    console.print(_ports("outputs", found.outputs, found))
    console.print("types: " + _text(", ".join(f"{name} {count}" for name, count in found.types.items())))
    for device, names in found.placements.items():
        where = "the host" if device == "CPU" else "the device" if device == "NPU" else ""
        console.print(_text(f"on {device}{where and f' ({where})'}: {_few(names)}"))
    dynamic = "; ".join(f"{where} {_dimensions(dimensions)}" for where, dimensions in found.dynamic.items())
    console.print(_text(f"dynamic: {dynamic or 'nothing'}"))
    for node in found.moe:
        console.print(_moe(node))
    if not found.moe:
        console.print("no MoE nodes")
    _conversions(console, "casts", found.casts)
    _conversions(console, "transposes", found.transposes)


def _ports(title: str, ports: tuple[Port, ...], found: Summary) -> Table:
    table = _table(title, "", "name", "tensor", "on")
    for at, port in enumerate(ports):
        device = port.tensor.device if port.tensor is not None else ""
        _row(table, at, port.name, port.tensor, device)
    return table


def _moe(node: Any) -> Table:
    table = _table(f"{node.type} {node.name}", "", "", "")
    for port in node.inputs:
        _row(table, "input", port.name, "not fed" if port.tensor is None else port.tensor)
    for at, tensor in enumerate(node.outputs):
        _row(table, "output", at, tensor)
    for key, value in node.attributes.items():
        _row(table, "attribute", key, _short(value))
    for line in node.source:
        _row(table, "source", "", line)
    if node.fx:
        _row(table, "FX node", "", node.fx)
    return table


def _conversions(console: Console, title: str, conversions: tuple[Conversion, ...]) -> None:
    counts = {origin: sum(conversion.origin == origin for conversion in conversions) for origin in _ORIGINS}
    shares = ", ".join(f"{count} {_ORIGINS[origin]}" for origin, count in counts.items() if count)
    console.print(f"{title}: {len(conversions)}{shares and f' ({shares})'}")
    shown = [conversion for conversion in conversions if conversion.origin != "model"]
    if not shown:
        return
    table = _table("", "node", "what it does", "origin", "FX node")
    for conversion in shown:
        if conversion.type == "Cast":
            what = f"{conversion.before or '?'} to {conversion.after or '?'}"
            what += ", changes nothing" if conversion.changes_nothing else ""
        else:
            what = f"{conversion.before or '?'} by {list(conversion.permutation) if conversion.permutation else '?'}"
        _row(table, conversion.name, what, _ORIGINS[conversion.origin], conversion.fx)
    console.print(table)


def _nodes(nodes: list[Node]) -> Table:
    table = _table("", "name", "type", "inputs", "outputs", "attributes", "source", "FX node")
    for node in nodes:
        inputs = ", ".join(
            "-" if edge is None else f"^{edge.node}" if edge.is_control else f"{edge.node}:{edge.output}"
            for edge in node.inputs
        )
        outputs = ", ".join(map(str, node.outputs))
        attributes = ", ".join(f"{key}={_short(value)}" for key, value in node.attributes.items())
        _row(table, node.name, node.type, inputs, outputs, attributes, "\n".join(node.source), node.fx)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=_text(title) or None, title_justify="left", show_header=any(columns), box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(table: Table, *cells: Any) -> None:
    table.add_row(*(_text("" if cell is None else str(cell)) for cell in cells))


def _text(text: str) -> str:
    return "\n".join(line.translate(_CONTROL) for line in text.split("\n"))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])} and {len(names) - 12} more"


def _dimensions(dimensions: tuple[int, ...]) -> str:
    return f"dimension{'s' if len(dimensions) > 1 else ''} {', '.join(map(str, dimensions))}"
