"""A plan as a page: the graph with its nodes coloured by cost, collectives marked, and memory over the nodes as a curve."""

from __future__ import annotations

from pathlib import Path

from moe_graph.dumps import html
from moe_graph.dumps.fx_code import from_fx
from moe_graph.dumps.reading_definition import from_definition
from moe_graph.planning import roofline
from moe_graph.planning.entry import Plan
from moe_graph.planning.rehearsal import Step
from moe_graph.planning.report import bytes_in_words, group_in_words, number_in_words, rank_in_words, received_in_words


def write(plan: Plan, path: str | Path) -> None:
    """Write the plan's page to an HTML file. The depth of a node's colour is its part of the estimate, which no other figure depends on."""
    graph = from_fx(plan.graph.module) if plan.graph.definition is None else from_definition(plan.graph.definition)
    seconds = {step.name: roofline.seconds(step, plan.figures) for step in plan.steps}
    most = max(seconds.values(), default=0.0) or 1.0
    held = plan.memory.total - plan.memory.results
    costs = {
        step.name: html.Cost(
            (seconds[step.name] / most) ** 0.5, held + step.live, bool(step.communication), _rows(step, seconds)
        )
        for step in plan.steps
    }
    title = (
        f"memory of the device over the nodes{rank_in_words(plan)}: {bytes_in_words(held)} of parameters, caches and inputs, and "
        f"results up to {bytes_in_words(plan.memory.results)}; a click shows the node. Marks below: collectives"
    )
    html.write(graph, path, costs, title)


def _rows(step: Step, seconds: dict[str, float]) -> tuple[tuple[str, str], ...]:
    rows = [
        ("operations", ("at most " if step.flops_are_bound else "") + number_in_words(step.flops)),
        ("read", bytes_in_words(step.read)),
        ("written", bytes_in_words(step.written)),
        ("live", bytes_in_words(step.live)),
    ]
    if step.flops and step.moved:
        rows.append(("operations a byte", f"{step.flops / step.moved:.1f}"))
    for message in step.communication:
        sizes = f"{bytes_in_words(message.given)} given, {received_in_words(message.received)} received"
        rows.append((message.operator, f"ranks {group_in_words(message.ranks)}: {sizes}"))
    rows.append(("estimate", f"{1e6 * seconds[step.name]:.2f} us"))
    if step.line:
        rows.append(("line", step.line))
    return tuple(rows)
