"""Few words about a graph, and its picture where a notebook shows it."""

from __future__ import annotations

import base64
import html
import importlib
from collections.abc import Mapping
from typing import Any

SHOWN = 6  # types that a line names
DRAWN = 400  # nodes of the largest graph that a notebook draws by itself


def short_counts(types: Mapping[str, int]) -> str:
    """ "12 nodes: 3 Data, 2 MoeReRouting, ...": the most frequent types, those of MoE first."""
    order = sorted(types, key=lambda name: ("moe" not in name.lower(), -types[name], name))
    named = ", ".join(f"{types[name]} {name}" for name in order[:SHOWN])
    more = f", {len(order) - SHOWN} other types" if len(order) > SHOWN else ""
    total = sum(types.values())
    return f"{total} node{'s' * (total != 1)}{named and ': '}{named}{more}"


def picture(graph: Any) -> str:
    """HTML for a `model.Graph`: its line, and the picture of a graph of at most `DRAWN` nodes."""
    line = f"<p>{html.escape(repr(graph))}</p>"
    if len(graph.nodes) > DRAWN:
        return line
    # By its name: what draws a graph is made of graphs. As an image its style is its own, and not the notebook's.
    drawn = base64.b64encode(importlib.import_module("moe_graph.dumps.svg").svg(graph).encode()).decode()
    return f'{line}<img style="max-height: 40em" src="data:image/svg+xml;base64,{drawn}">'
