"""A plan in words: tables, JSON, two plans side by side, and what to change first where the memory does not suffice.

Exact figures and the estimate stand apart, under headings of their own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from moe_graph.planning import communication
from moe_graph.planning.entry import CAPTURED, Plan
from moe_graph.planning.rehearsal import Step

SCHEMA = "moe_graph plan 1"
_WIDTH = 140
_MOST = 12  # rows of a table of nodes
_PARTS = ("parameters", "buffers", "caches", "inputs", "results")
_WORDS = {"caches": "key/value caches", "results": "results of nodes at the peak"}
_CAPTURED = "exact, but for what kernels work in"
_OF_GE = "of the graph as torchair hands it over: GE adds workspace and alignment, and may fuse nodes"


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything that a plan tells, as JSON holds it; `estimate` alone is an estimate."""
    return {
        "schema": SCHEMA,
        "graph": plan.graph.name,
        "mode": plan.mode,
        "rank": plan.rank,
        "world": plan.world,
        "memory": {**{part: getattr(plan.memory, part) for part in _PARTS}, "total": plan.memory.total},
        "at_peak": [{"node": node, "bytes": size} for node, size in plan.at_peak],
        "flops": plan.flops,
        "bytes": plan.moved,
        "communication": [
            {"ranks": list(ranks), "operator": name, "calls": calls, "given": given, "received": received}
            for ranks, table in communication.by_group(plan.messages).items()
            for name, (calls, given, received) in table.items()
        ],
        "routing": {
            name: {
                "received": list(load.received),
                "worst_rank": load.worst,
                "imbalance": load.imbalance,
                "busiest_expert": load.busiest_expert,
                "busiest_expert_tokens": load.busiest,
                "sent_elsewhere": list(load.sent_elsewhere),
            }
            for name, load in plan.loads.items()
        },
        "nodes": [_node(step) for step in plan.steps],
        "estimate": {"product": plan.product, "figures": dict(plan.figures), "seconds": plan.estimate},
    }


def _node(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "type": step.type,
        "line": step.line,
        "flops": step.flops,
        "flops_are_bound": step.flops_are_bound,
        "read": step.read,
        "written": step.written,
        "allocated": step.allocated,
        "live": step.live,
        "intensity": step.flops / step.moved if step.moved else 0.0,
        "sent": sum(message.given for message in step.communication),
    }


def show(plan: Plan) -> None:
    """Print the tables of a plan."""
    console = _console()
    console.rule(f"{plan.graph.name} ({plan.mode}){rank_in_words(plan)}: {len(plan.steps)} nodes", align="left")
    console.print(_memory(plan))
    lines = {step.name: step.line for step in plan.steps}
    peak = _table("at the peak live", "node", "bytes", "line")
    for node, size in [one for one in plan.at_peak if one[1]][:_MOST]:
        peak.add_row(node, bytes_in_words(size), _short(lines.get(node, "")))
    console.print(peak)
    console.print(_communication(plan))
    for name, load in plan.loads.items():
        console.print(
            f"tokens {name}: rank {load.worst} has most, {load.received[load.worst]} of {sum(load.received)}, {load.imbalance:.2f} times "
            f"the mean; expert {load.busiest_expert} takes {load.busiest}"
        )
    console.print(_nodes(plan))
    bound = (
        " (at most: where values decide, operands are taken as filled)"
        if any(s.flops_are_bound for s in plan.steps)
        else ""
    )
    console.print(
        f"operations {number_in_words(plan.flops)}{bound}, bytes read and written {bytes_in_words(plan.moved)}, "
        f"{plan.flops / max(plan.moved, 1):.1f} operations a byte"
    )
    console.rule("estimate", align="left", style="dim")
    console.print(
        f"at least {1e3 * plan.estimate:.3f} ms by a roofline of {plan.product}'s figures (moe_graph/planning/figures.yaml, or --figures): "
        "no launch, no wait, no overlap is in it"
    )


def _memory(plan: Plan) -> Table:
    table = _table(f"memory of the device ({_CAPTURED if plan.mode == CAPTURED else _OF_GE})", "", "bytes", "")
    for part in _PARTS:
        size = getattr(plan.memory, part)
        table.add_row(_WORDS.get(part, part), str(size), bytes_in_words(size))
    table.add_row("together", str(plan.memory.total), bytes_in_words(plan.memory.total))
    return table


def _communication(plan: Plan) -> Table:
    table = _table("communication of this rank", "group", "operator", "calls", "given", "received")
    for ranks, operators in communication.by_group(plan.messages).items():
        for name, (calls, given, received) in operators.items():
            sizes = bytes_in_words(given), received_in_words(received)
            table.add_row(group_in_words(ranks), name, str(calls), *sizes)
    return table


def _nodes(plan: Plan) -> Table:
    table = _table("nodes by type", "type", "nodes", "operations", "read", "written", "operations a byte")
    found: dict[str, list[int]] = {}
    for step in plan.steps:
        row = found.setdefault(step.type, [0, 0, 0, 0])
        for at, value in enumerate((1, step.flops, step.read, step.written)):
            row[at] += value
    for kind, (count, flops, read, written) in sorted(found.items(), key=lambda one: -(one[1][2] + one[1][3]))[:_MOST]:
        intensity = f"{flops / max(read + written, 1):.1f}"
        table.add_row(
            kind, str(count), number_in_words(flops), bytes_in_words(read), bytes_in_words(written), intensity
        )
    return table


def compare(plans: Sequence[tuple[str, Plan]]) -> None:
    """Print plans side by side: memory, traffic, the worst rank, and the estimate below a line of its own."""
    table = _table("", "", *(name for name, _ in plans))
    each = [plan for _, plan in plans]
    table.add_row("rank of world", *(f"{plan.rank} of {plan.world}" for plan in each))
    for part in (*_PARTS, "total"):
        table.add_row(_WORDS.get(part, part), *(bytes_in_words(getattr(plan.memory, part)) for plan in each))
    table.add_row("operations", *(number_in_words(plan.flops) for plan in each))
    table.add_row("bytes read and written", *(bytes_in_words(plan.moved) for plan in each))
    table.add_row("calls of collectives", *(str(len(plan.messages)) for plan in each))
    table.add_row("given to collectives", *(bytes_in_words(sum(m.given for m in plan.messages)) for plan in each))
    for name in dict.fromkeys(name for plan in each for name in plan.loads):
        table.add_row(f"worst rank, tokens {name}", *(_worst(plan, name) for plan in each), end_section=True)
    table.add_row("estimate (roofline)", *(f"{1e3 * plan.estimate:.3f} ms, {plan.product}" for plan in each))
    _console().print(table)


def _worst(plan: Plan, name: str) -> str:
    load = plan.loads.get(name)
    return "" if load is None else f"rank {load.worst}: {load.received[load.worst]} tokens, {load.imbalance:.2f} x mean"


def advice(plan: Plan, limit: int) -> list[str]:
    """What to change first so that the memory is at most `limit` bytes, the largest part first; nothing if it is."""
    over = plan.memory.total - limit
    if over <= 0:
        return []
    found = [
        f"{bytes_in_words(plan.memory.total)} are needed, {bytes_in_words(over)} more than {bytes_in_words(limit)}"
    ]
    lines = {step.name: step.line for step in plan.steps}
    hints = {
        "parameters": "more ranks for experts or tensors, or fewer bits",
        "caches": "fewer requests, shorter ones, or int8",
        "buffers": "tables that could be made when they are used",
        "inputs": "fewer tokens of a call",
        "results": "fewer tokens of a call",
    }
    if plan.at_peak:
        node, size = plan.at_peak[0]
        hints["results"] += (
            f"; the largest at the peak is {node}, {bytes_in_words(size)}, {lines.get(node) or 'of no known line'}"
        )
    for part in sorted(_PARTS, key=lambda part: -getattr(plan.memory, part)):
        size = getattr(plan.memory, part)
        if size >= over:
            found.append(
                f"{_WORDS.get(part, part)} ({bytes_in_words(size)}) {100 * over / size:.0f} % less would do: {hints[part]}"
            )
    if len(found) == 1:
        found.append("no part alone is as large as what is missing: change the largest, then plan again")
    return found


def bytes_in_words(size: float) -> str:
    """1536 -> '1.5 KiB'."""
    if abs(size) < 1024:
        return f"{size:.0f} B"
    power = min(int(math.log(abs(size), 1024)), 4)
    return f"{size / 1024**power:.2f} {'KMGT'[power - 1]}iB"


def number_in_words(value: float) -> str:
    """2.5e12 -> '2.5 T'."""
    power = min(int(math.log10(abs(value)) // 3), 5) if abs(value) >= 1000 else 0
    return f"{value / 1000**power:.3g} {' kMGTP'[power]}".strip()


def received_in_words(size: int | None) -> str:
    """The bytes received from a collective; None: as many as the values decide."""
    return "as the tokens go" if size is None else bytes_in_words(size)


def rank_in_words(plan: Plan) -> str:
    """ ", rank 3 of 8", to go on with; "" of one rank alone."""
    return f", rank {plan.rank} of {plan.world}" if plan.world > 1 else ""


def group_in_words(ranks: Sequence[int]) -> str:
    """(0, 1, 2, 3) -> '0 to 3'."""
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[0] + len(ranks))):
        return f"{ranks[0]} to {ranks[-1]}"
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")


def _short(line: str) -> str:
    place, _, code = line.partition(": ")
    return f"{place.rpartition('/')[2]}: {code}" if line else ""


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right", overflow="fold")
    return table


def _console() -> Console:
    width = None if sys.stdout.isatty() else _WIDTH
    return Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
