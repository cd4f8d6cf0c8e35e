"""A survey in this process: what the program asks for and the simulated device lacks.

`python -m moe_graph survey` switches it on (MOE_GRAPH_SIM_SURVEY names a folder). What is lacking is then answered by a stand-in, of the
right shape and without values (`foundation.marks`). Each process writes its findings into the folder as they come, a line of JSON each, so
those of a program that dies are there too. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

VARIABLE = "MOE_GRAPH_SIM_SURVEY"
OPERATOR, FORM, GE_TYPE, GE_FORM, FUNCTION = "operator", "form", "GE type", "GE form", "function of CANN"
VALUE, ERROR = "value", "error"
LACKING = (OPERATOR, FORM, GE_TYPE, GE_FORM, FUNCTION)
"""Kinds of findings: these are lacking; VALUE: the host has read a value of a stand-in; ERROR: a process ended with an error."""

_lock = threading.Lock()
_seen: set[tuple[str, ...]] = set()


def is_on() -> bool:
    """Is this process surveyed?"""
    return bool(os.environ.get(VARIABLE))


def found(kind: str, name: str, detail: str, line: str) -> None:
    """Write a finding, once: its kind, what is meant, what was said of it in one line, and the line of the program."""
    row = (kind, name, detail.strip().partition("\n")[0], line)
    with _lock:
        if row in _seen:
            return
        _seen.add(row)
        rank = os.environ.get("RANK", "0")
        with open(Path(os.environ[VARIABLE]) / f"{rank}-{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps([rank, *row]) + "\n")


def read(folder: Path) -> list[tuple[str, ...]]:
    """(rank, kind, name, detail, line) of each finding of each process, in the order in which a process found them."""
    files = sorted(folder.glob("*.jsonl"))
    return [tuple(json.loads(line)) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
