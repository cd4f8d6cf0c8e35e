"""Two data dumps of the same program, one of them from a device perhaps, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_graph.data_dump.folder import Place, places
from moe_graph.data_dump.operator_file import Stored, read
from moe_graph.engine.difference import describe_difference

AGREES, DIFFERS, ALONE, NOT_COMPARED = "agrees", "differs", "in one dump", "not compared"


@dataclass(frozen=True)
class Row:
    """An output of an operator, or an operator that only one dump has.

    Attributes:
        graph, run: which graph of the dump and which run of it, from 0
        type, name: the operator's, in the first dump if it has it
        output: which of its outputs; None for an operator that only one dump has
        status: "agrees", "differs", "in one dump", "not compared" (a type or format that is not read here)
        described: type and shape
        found: of a difference, as describe_difference: first position, both values, largest absolute error, how many elements differ
        other: the operator's name in the other dump, if it is another (GE has fused it)
        reason: which dump has it, or why it is not compared
    """

    graph: int
    run: int
    type: str
    name: str
    output: int | None
    status: str
    described: str = ""
    found: dict[str, Any] | None = None
    other: str = ""
    reason: str = ""


def compare(a: str | Path, b: str | Path, rtol: float | None = None, atol: float | None = None) -> list[Row]:
    """Rows in the order in which dump `a` was computed; what only `b` has comes last.

    Graphs are matched by their order, runs by their number, operators by name. An operator that GE has fused of several carries
    their names one after the other: its outputs are those of the last. Tolerances are those torch.testing.assert_close documents for
    the dtype, unless given. Raises DataDumpError for a folder or file that is no dump, OSError if one cannot be read.
    """
    firsts, seconds = places(a), places(b)
    ours, theirs = _by_key(firsts), _by_key(seconds)
    rows, met = [], set()
    for place in firsts:
        other = theirs.get((place.graph, place.run, place.name)) or _fused(place, theirs, ours)
        if other is None:
            if not any(_is_part(place, one) for one in seconds):
                rows.append(_alone(place, a))
            continue
        met.add(other.path)
        rows += _outputs(place, other, rtol, atol)
    rows += [
        _alone(place, b)
        for place in seconds
        if place.path not in met and not any(_is_part(place, one) for one in firsts)
    ]
    return rows


def _by_key(found: list[Place]) -> dict[tuple[int, int, str], Place]:
    return {(place.graph, place.run, place.name): place for place in found}


def _fused(
    place: Place, theirs: dict[tuple[int, int, str], Place], ours: dict[tuple[int, int, str], Place]
) -> Place | None:
    """The operator of the other dump whose outputs these are, if one of the two was fused of several."""
    same = [one for (graph, run, _), one in theirs.items() if (graph, run) == (place.graph, place.run)]
    ends = [one for one in same if one.name.endswith(place.name) and (place.graph, place.run, one.name) not in ours]
    parts = [one for one in same if place.name.endswith(one.name)]
    return min(ends, key=lambda one: len(one.name), default=None) or max(
        parts, key=lambda one: len(one.name), default=None
    )


def _is_part(place: Place, whole: Place) -> bool:
    """Was this operator fused into that one of the other dump, not as its last?"""
    return (
        (place.graph, place.run) == (whole.graph, whole.run) and place.name in whole.name and place.name != whole.name
    )


def _alone(place: Place, dump: str | Path) -> Row:
    return Row(place.graph, place.run, place.type, place.name, None, ALONE, reason=f"only in {dump}")


def _outputs(place: Place, other: Place, rtol: float | None, atol: float | None) -> list[Row]:
    ours, theirs = read(place.path).outputs, read(other.path).outputs
    name = other.name if other.name != place.name else ""
    rows = [
        Row(place.graph, place.run, place.type, place.name, at, *_compared(one, two, rtol, atol), other=name)
        for at, (one, two) in enumerate(zip(ours, theirs))
    ]
    if len(ours) != len(theirs):
        why = f"{len(ours)} outputs and {len(theirs)}"
        rows.append(Row(place.graph, place.run, place.type, place.name, None, DIFFERS, other=name, reason=why))
    return rows


def _compared(
    one: Stored, two: Stored, rtol: float | None, atol: float | None
) -> tuple[str, str, dict[str, Any] | None]:
    described = one.described if one.described == two.described else f"{one.described}; {two.described}"
    if one.value is None or two.value is None:
        return NOT_COMPARED, described, None
    found = describe_difference(one.value, two.value, rtol, atol)
    return (DIFFERS, described, found) if found else (AGREES, described, None)
