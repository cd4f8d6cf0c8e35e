"""The end of `tox -e mutation`: the mutants that no test noticed, held against mutation_survivors.toml, which says why of each.

`python tests/mutation_survivors.py SESSION ...` reads cosmic-ray's sessions. Its exit status is 1 if a mutant survived without an
explanation, if an explanation is of none that survived, or if a mutant was not run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import tomllib
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome

EXPLANATIONS = Path(__file__).with_suffix(".toml")


class Mutant(NamedTuple):
    """A module, and the line that the mutant has there, or "removed: " and the line that it lacks."""

    module: str
    line: str


def mutant(diff: str) -> Mutant:
    """What a unified diff of one line changes."""
    head, _, body = diff.partition("\n@@")
    changed = [line for line in body.splitlines()[1:] if line.startswith(("-", "+")) and line[1:].strip()]
    added = [line[1:].strip() for line in changed if line.startswith("+")]
    return Mutant(head.rpartition("+++ b/")[2], added[0] if added else f"removed: {changed[0][1:].strip()}")


def explained() -> dict[Mutant, str]:
    """The reason of each survivor that has one."""
    entries = tomllib.loads(EXPLANATIONS.read_text())["survivor"]
    return {Mutant(entry["module"], entry["line"]): entry["why"] for entry in entries}


def main(sessions: list[str]) -> int:
    survivors: dict[Mutant, str] = {}
    run = survived = missed = 0
    for session in sessions:
        with use_db(session, WorkDB.Mode.open) as database:
            missed += len(database.pending_work_items)
            results = [result for _, result in database.results if result.worker_outcome != WorkerOutcome.SKIPPED]
        run += len(results)
        diffs = [result.diff for result in results if not result.is_killed]
        survived += len(diffs)
        survivors |= {mutant(diff): diff for diff in diffs}
    reasons = explained()
    unexplained = [diff for found, diff in survivors.items() if found not in reasons]
    outdated = [entry for entry in reasons if entry not in survivors]
    for diff in unexplained:
        print(diff)
    for entry in outdated:
        print(f"{EXPLANATIONS.name}: no mutant of {entry.module} survives with the line: {entry.line}")
    print(
        f"{run} mutants run, {missed} not; {survived} survived, "
        f"{len(unexplained)} of their {len(survivors)} lines without an explanation; {len(outdated)} explanations of none"
    )
    return int(bool(unexplained or outdated or missed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
