"""The outcomes as a table, by mode, and as JSON."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moe_graph.verification.operators import Finding
from moe_graph.verification.run import Implementation, Outcome, Status

# Raised when a reader of older reports would misread a newer one.
FORMAT = 1


def counts(outcomes: list[Outcome]) -> dict[str, int]:
    """How many calls ended in each status."""
    found = collections.Counter(outcome.status for outcome in outcomes)
    return {status.value: found[status] for status in Status}


def as_json(outcomes: list[Outcome], surroundings: dict[str, Any], findings: Sequence[Finding] = ()) -> dict[str, Any]:
    """Everything that was found, in JSON's types. `surroundings` is `machine.describe()`; `findings` are of the other operators."""
    calls = [
        {
            "mode": vars(outcome.mode),
            "shape": vars(outcome.shape),
            "implementation": outcome.implementation.value,
            "status": outcome.status.value,
            "reason": outcome.reason,
            "seconds": outcome.seconds,
        }
        for outcome in outcomes
    ]
    others = [{**vars(finding), "status": finding.status.value} for finding in findings]
    return {"format": FORMAT, **surroundings, "counts": counts(outcomes), "calls": calls, "operators": others}


def ratio(outcomes: list[Outcome], implementation: Implementation) -> float | None:
    """The median, over the shapes that both have run, of this implementation's time over the fallback's on the same device."""
    seconds = {(outcome.mode, outcome.shape, outcome.implementation): outcome.seconds for outcome in outcomes}
    ratios = []
    for (mode, shape, which), own in seconds.items():
        peer = seconds.get((mode, shape, Implementation.FALLBACK))
        if which is implementation and own is not None and peer:
            ratios.append(own / peer)
    return statistics.median(ratios) if ratios else None


def show(outcomes: list[Outcome], surroundings: dict[str, Any], console: Console) -> None:
    """Print the table, what failed, and the versions."""
    device, versions = surroundings["device"], surroundings["versions"]
    simulated = device["simulated"]
    table = Table(
        title=f"npu_moe_re_routing on {'a simulated ' if simulated else ''}{device['name']}", title_justify="left"
    )
    table.add_column("call")
    for implementation in Implementation:
        table.add_column(implementation.value)
    if not simulated:
        table.add_column("kernel : fallback", justify="right")
        table.add_column("graph : fallback", justify="right")
    by_mode: dict[Any, list[Outcome]] = {}
    for outcome in outcomes:
        by_mode.setdefault(outcome.mode, []).append(outcome)
    for mode, members in by_mode.items():
        row = [escape(str(mode))]
        for which in Implementation:
            row.append(_cell([outcome for outcome in members if outcome.implementation is which]))
        if not simulated:
            for which in (Implementation.KERNEL, Implementation.GRAPH):
                value = ratio(members, which)
                row.append("-" if value is None else f"{value:.2f}")
        table.add_row(*row)
    console.print(table)
    for outcome in outcomes:
        if outcome.failed:
            text = f"{outcome.implementation.value}, {outcome.mode}, {outcome.shape}: {outcome.reason}"
            console.print(f"[red]{outcome.status.value}[/] {escape(text)}", soft_wrap=True)
    console.print(", ".join(f"{number} {status}" for status, number in counts(outcomes).items()))
    console.print(", ".join(f"{name} {number}" for name, number in versions.items() if number is not None))
    if simulated:
        console.print(
            "The device is simulated: the adapter, the converter and the lowering are the real ones, the kernel is a model of the "
            "documented one, and times mean nothing.",
            soft_wrap=True,
        )


def show_operators(findings: Sequence[Finding], console: Console) -> None:
    """Print how many of the other operators' calls agree, which do not and why, and what was not called for which reasons."""
    found = collections.Counter(finding.status for finding in findings)
    for finding in findings:
        if finding.failed:
            text = f"{finding.operator}, call {finding.call}: {finding.reason}"
            console.print(f"[red]{finding.status.value}[/] {escape(text)}", soft_wrap=True)
    made = len(findings) - found[Status.NOT_SERVED]
    console.print(f"Other operators: {found[Status.AGREES]} of {made} calls agree with the reference", soft_wrap=True)
    reasons = collections.Counter(finding.reason for finding in findings if finding.status is Status.NOT_SERVED)
    for reason, number in reasons.most_common():
        console.print(f"{number} not called: {escape(reason)}", soft_wrap=True)


def _cell(outcomes: list[Outcome]) -> str:
    served = [outcome for outcome in outcomes if outcome.status is not Status.NOT_SERVED]
    if not served:
        return "[dim]not served[/]"
    agree = sum(outcome.status is Status.AGREES for outcome in served)
    return f"[green]{agree} agree[/]" if agree == len(served) else f"[red]{agree} of {len(served)} agree[/]"
