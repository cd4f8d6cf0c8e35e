"""A graph as one page: searched, zoomed, folded and read in any browser, without a network.

The page is made of the three files in page/, and of data: what each node shows, and one layout (layout_view) for each choice
of what is folded. Its policy (CSP) lets it load nothing and run its own script alone, by that script's hash.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from moe_graph.dumps.layout_view import CONSTANT, SHAPE, View, boxes_of, hidden_at_first, view_of
from moe_graph.dumps.model import Descriptor, Edge, Graph, Node
from moe_graph.dumps.summary import data_inputs, plain


@dataclass(frozen=True)
class Cost:
    """What a page shows of a node's costs.

    Attributes:
        weight: how deep the node is coloured, from 0 to 1
        live: how much memory is taken while it runs, for the curve
        sends: is it marked as one that communicates?
        rows: (name, text) for the node's panel
    """

    weight: float
    live: float
    sends: bool = False
    rows: tuple[tuple[str, str], ...] = ()


def write(graph: Graph, path: str | Path, costs: Mapping[str, Cost] | None = None, title: str = "") -> None:
    """Write the graph to an HTML file; with the costs of nodes by name they are coloured, and memory is a curve above `title`."""
    Path(path).write_text(html(graph, costs, title), encoding="utf-8")


def html(graph: Graph, costs: Mapping[str, Cost] | None = None, title: str = "") -> str:
    """The page. Arguments as `write`'s."""
    style, script = _part("page.css"), _part("curve.js") + _part("page.js")
    policy = f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'"
    # `<` is all that could end the element the data is in; JSON reads it back from its escape.
    with _collector_paused():
        drawn = page_data(graph)
    if costs is not None:
        drawn["costs"] = _costs(graph, costs, title)
    data = json.dumps(drawn, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = _part("page.html")
    for mark, text in (("@policy@", policy), ("@style@", style), ("@script@", script), ("@data@", data)):
        head, _, tail = page.partition(mark)
        page = head + text + tail
    return page


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Inside, Python looks for no circles: hundreds of thousands of lists and tuples are made here, and not one is in a circle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def page_data(graph: Graph) -> dict[str, Any]:
    """What the page draws, as JSON holds it.

    nodes   in the graph's order; `at` of an input is the place of its source in this list, -1 if it is not there
    views   by the kinds folded, sorted and parted by a space: places of nodes, their middles, lines with their points
    """
    boxes = boxes_of(graph)
    kinds = {box.kind for box in boxes}
    foldable = [kind for kind in (CONSTANT, SHAPE) if kind in kinds]
    place = {node.name: at for at, node in enumerate(graph.nodes)}
    views = {"": _view(view_of(boxes), place)}
    for hide in ([CONSTANT], [SHAPE], [CONSTANT, SHAPE]):
        there = " ".join(kind for kind in hide if kind in foldable)
        key = " ".join(hide)
        views[key] = views.get(there) or _view(view_of([box for box in boxes if box.kind not in hide]), place)
    return {
        "name": graph.name,
        "kind": graph.kind,
        "stage": graph.stage,
        "hidden": sorted(hidden_at_first(graph)),
        "nodes": [
            {
                **_node(graph, box.node, place),
                "kind": box.kind,
                "path": box.on_path,
                "lines": box.lines,
                "width": round(box.width),
                "height": round(box.height),
            }
            for box in boxes
        ],
        "views": views,
    }


def _costs(graph: Graph, costs: Mapping[str, Cost], title: str) -> dict[str, Any]:
    """By the place of a node: how deep it is coloured, whether it communicates, its rows; and the curve, in the order of `costs`."""
    place = {node.name: at for at, node in enumerate(graph.nodes)}
    there = {place[name]: cost for name, cost in costs.items() if name in place}
    return {
        "title": title,
        "weight": {at: round(cost.weight, 4) for at, cost in there.items() if cost.weight},
        "sends": [at for at, cost in there.items() if cost.sends],
        "rows": {at: cost.rows for at, cost in there.items()},
        "curve": [[at, cost.live] for at, cost in there.items()],
    }


def _view(shown: View, place: dict[str, int]) -> dict[str, Any]:
    at = [place[box.node.name] for box in shown.boxes]
    return {
        "nodes": at,
        "x": [round(x) for x, _ in shown.layout.centres],
        "y": [round(y) for _, y in shown.layout.centres],
        "width": round(shown.layout.width),
        "height": round(shown.layout.height),
        "lines": [
            [at[start], at[end], int(data), [round(number) for point in route for number in point]]
            for (start, end, data), route in zip(shown.lines, shown.layout.routes)
        ],
    }


def _node(graph: Graph, node: Node, place: dict[str, int]) -> dict[str, Any]:
    ports = iter(data_inputs(graph, node))
    inputs, names = [], []
    for edge in node.inputs:
        port = None if edge is not None and edge.is_control else next(ports)
        names.append("" if port is None else port.name)
        inputs.append(None if edge is None else _input(edge, port.tensor if port else None, place))
    attributes = sorted(node.attributes.items(), key=lambda item: item[0].startswith("_"))
    return {
        "name": node.name,
        "type": node.type,
        "inputs": inputs,
        "inputNames": names,
        "outputs": [_tensor(output) for output in node.outputs],
        "attributes": [[key, _value(value)] for key, value in attributes],
        "source": node.source,
        "fx": node.fx,
    }


def _input(edge: Edge, tensor: Descriptor | None, place: dict[str, int]) -> dict[str, Any]:
    known = tensor is not None and (tensor.dtype or tensor.shape is not None)
    return {
        "node": edge.node,
        "at": place.get(edge.node, -1),
        "output": edge.output,
        "tensor": str(tensor) if known else "",
    }


def _tensor(tensor: Descriptor) -> str:
    words = [str(tensor) if tensor.dtype or tensor.shape is not None else "not described", tensor.format, tensor.device]
    return "  ".join(word for word in words if word)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def _part(name: str) -> str:
    return resources.files("moe_graph.dumps").joinpath("page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Of an inline script or style, as a policy names it (CSP level 2)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
