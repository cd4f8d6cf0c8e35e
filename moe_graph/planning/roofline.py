"""An estimate of times, and no more: each node takes as long as its operations, its bytes or its communication alone would need at best.

No launch, no wait and no overlap is in it. The figures are a product's published ones, or the user's (a YAML file of the same form).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from moe_graph.planning.errors import PlanError
from moe_graph.planning.rehearsal import Step

FIELDS = ("matrix", "memory", "link", "memory_gib")


def figures(product: str, path: str | Path | None = None) -> dict[str, Any]:
    """The figures of a product ("A2", "A3", "950"), from `path` or the package's file. Raises PlanError that names what is missing."""
    import yaml

    source = resources.files("moe_graph.planning").joinpath("figures.yaml") if path is None else Path(path)
    try:
        everything = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: {error}") from error
    found = everything.get(product, everything) if isinstance(everything, dict) else None
    if not isinstance(found, dict) or any(name not in found for name in FIELDS):
        raise PlanError(f"{path}: figures of {product} must have {', '.join(FIELDS)}, got {found}")
    return dict(found)


def seconds(step: Step, of: Mapping[str, Any]) -> float:
    """The least time of one node by these figures."""
    rates = of["matrix"]
    rate = rates.get(step.dtype, max(rates.values()))
    sent = sum(max(message.given, message.received or 0) for message in step.communication)
    return max(step.flops / (rate * 1e12), step.moved / (of["memory"] * 1e9), sent / (of["link"] * 1e9))


def total(steps: Iterable[Step], of: Mapping[str, Any]) -> float:
    """The sum over the nodes."""
    return sum(seconds(step, of) for step in steps)
