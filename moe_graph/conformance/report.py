"""The outcomes as a table by family, a list of what did not pass, and JSON."""

from __future__ import annotations

import collections
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moe_graph.conformance.run import Outcome, Status

NO_FAMILY = "(not lowered)"
_STYLES = {Status.PASSED: "green", Status.RANDOM: "cyan", Status.REFUSED: "yellow", Status.FAILED: "red"}
_HEADINGS = {
    Status.RANDOM: "Random: shape, dtype and distribution hold",
    Status.REFUSED: "Refused by torch, or not lowered by torchair",
    Status.FAILED: "Failed",
}


def counts(outcomes: list[Outcome]) -> dict[str, int]:
    """How many cases ended in each status, in the order of `Status`."""
    found = collections.Counter(outcome.status for outcome in outcomes)
    return {status.value: found[status] for status in Status}


def families(outcomes: list[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes by family, families by name.

    A family is the module of kernels that serves an operator's main node. An operator is in one family with all its cases: that of most
    of them which were lowered.
    """
    by_operator: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_operator.setdefault(outcome.case.name, []).append(outcome)
    grouped: dict[str, list[Outcome]] = {}
    for members in by_operator.values():
        named = collections.Counter(outcome.family for outcome in members if outcome.family)
        family = named.most_common(1)[0][0] if named else NO_FAMILY
        grouped.setdefault(family, []).extend(members)
    return dict(sorted(grouped.items(), key=lambda item: (item[0] == NO_FAMILY, item[0])))


def as_json(outcomes: list[Outcome]) -> dict[str, Any]:
    """Everything the walk found, in JSON's types."""
    import torch_npu

    family_of = {id(outcome): name for name, members in families(outcomes).items() for outcome in members}
    return {
        "torch": torch.__version__,
        "torch_npu": torch_npu.__version__,
        "operators": len({outcome.case.name for outcome in outcomes}),
        "counts": counts(outcomes),
        "families": {name: counts(members) for name, members in families(outcomes).items()},
        "cases": [
            {
                "operator": outcome.case.name,
                "case": outcome.case.index,
                "arguments": outcome.case.describe(),
                "family": family_of[id(outcome)],
                "status": outcome.status.value,
                "reason": outcome.reason,
                "ge_types": outcome.ge_types,
                "seconds": round(outcome.seconds, 4),
            }
            for outcome in outcomes
        ],
    }


def show(outcomes: list[Outcome], console: Console) -> None:
    """Print the table by family, then each case that did not pass."""
    for status, heading in _HEADINGS.items():
        listed = [outcome for outcome in outcomes if outcome.status is status]
        if listed:
            console.print(f"\n[bold {_STYLES[status]}]{heading}[/] ({len(listed)})")
        for outcome in listed:
            reason = f": {outcome.reason}" if outcome.reason else ""
            text = f"{outcome.case} ({outcome.case.describe()}){reason}"
            console.print("  " + escape(text), highlight=False, soft_wrap=True)
    console.print()
    console.print(_table(outcomes))
    found = counts(outcomes)
    operators = len({outcome.case.name for outcome in outcomes})
    agreed = found["passed"] + found["random"]
    console.print(f"{agreed} of {len(outcomes)} cases of {operators} operators agree with eager PyTorch")


def _table(outcomes: list[Outcome]) -> Table:
    table = Table("family", title="torchair's declared cases on the host engine")
    for column in ("operators", "cases", *(status.value for status in Status)):
        table.add_column(column, justify="right")
    grouped = families(outcomes)
    for name, members in grouped.items():
        table.add_row(escape(name), *_numbers(members), end_section=name == list(grouped)[-1])
    table.add_row("all", *_numbers(outcomes), style="bold")
    return table


def _numbers(outcomes: list[Outcome]) -> list[str]:
    operators = len({outcome.case.name for outcome in outcomes})
    cells = [f"[{_STYLES[Status(status)]}]{number}[/]" if number else "" for status, number in counts(outcomes).items()]
    return [str(operators), str(len(outcomes)), *cells]
