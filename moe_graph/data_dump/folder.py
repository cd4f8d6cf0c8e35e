"""The files of a data dump: `TIME/DEVICE/GRAPH/NUMBER/RUN/TYPE.OPERATOR.TASK.STREAM.MICROSECONDS`, as GE lays them out.

NUMBER counts graphs from 1, RUN from 0.

Source: CANN's description of the dump's folders and the reader of msprobe (torchair_acc_cmp.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from moe_graph.data_dump.operator_file import DataDumpError


class Place(NamedTuple):
    """An operator's file.

    graph: which graph of the dump, from 0, in the order of their numbers
    run: which run of it
    """

    graph: int
    run: int
    type: str
    name: str
    time: int
    path: Path


def file_name(type_: str, name: str, task: int, stream: int, microseconds: int) -> str:
    """The name of an operator's file; what separates parts of paths and names is `_` in the operator's own."""
    return f"{type_}.{re.sub(r'[./ ]|' + re.escape(chr(92)), '_', name)}.{task}.{stream}.{microseconds}"


def places(folder: str | Path) -> list[Place]:
    """The files of a dump of one rank, in the order of execution. Raises DataDumpError if there are none, or of several ranks."""
    root = Path(folder)
    if not root.is_dir():
        raise DataDumpError(f"{root}: not a folder")
    found = [(path, parts) for path in root.rglob("*") if (parts := _parts(path)) is not None]
    if not found:
        raise DataDumpError(f"{root}: no file of GE's data dump below it (TYPE.OPERATOR.TASK.STREAM.MICROSECONDS)")
    ranks = {
        part
        for path, _ in found
        for part in path.relative_to(root).parts
        if re.fullmatch(r"worldsize\d+.*rank\d+", part)
    }
    if len(ranks) > 1:
        raise DataDumpError(f"{root}: the dumps of several ranks, {', '.join(sorted(ranks))}; name the folder of one")
    graphs = sorted({path.parents[1] for path, _ in found}, key=lambda at: (_number(at.name), str(at)))
    rows = [
        Place(graphs.index(path.parents[1]), _number(path.parent.name), type_, name, int(microseconds), path)
        for path, (type_, name, microseconds) in found
    ]
    return sorted(rows, key=lambda row: (row.graph, row.run, row.time))


def _parts(path: Path) -> tuple[str, str, str] | None:
    """Type, operator and time of a file's name. The operator's name may have dots, written by other versions."""
    match = re.fullmatch(r"([^.]+)\.(.+)\.\d+\.\d+\.(\d+)", path.name)
    return match.groups() if match and path.is_file() else None  # type: ignore[return-value]


def _number(name: str) -> int:
    return int(name) if name.isdigit() else 0
