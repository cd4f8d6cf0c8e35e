"""The data dump of GE graphs (`config.dump_config`): each operator's tensors in a file, where and as a device writes them.

torchair tells what to dump in a file of JSON, in the words of aclmdlSetDump (CANN's description of acl.json).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_graph.data_dump import folder, operator_file
from moe_graph.data_dump.operator_file import Typed
from moe_graph.engine.evaluator import observe
from moe_graph.engine.graph import Node, Plan

_MODES = {"input": (True, False), "output": (False, True), "all": (True, True)}
_IGNORED = {"quant_dumpable"}  # GE inserts no operators of quantization of its own here


@dataclass(frozen=True)
class Settings:
    """What is dumped.

    Attributes:
        root: the folder
        inputs, outputs: are they?
        runs: first and last of each range of runs, from 0; None: all
        operators: names or types of operators by the graph's name, None for all of them; no graph named: all
    """

    root: Path
    inputs: bool
    outputs: bool
    runs: tuple[tuple[int, int], ...] | None
    operators: dict[str, frozenset[str] | None]


def settings(description: Mapping[str, Any]) -> Settings:
    """Read `dump` of acl.json. Raises ValueError that names the key for what is not built here."""
    known = {"dump_path", "dump_mode", "dump_data", "dump_step", "dump_list", *_IGNORED}
    if unknown := sorted(set(description) - known):
        raise ValueError(
            f"simulated device: data dump: {', '.join(unknown)} is not built; known: {', '.join(sorted(known))}"
        )
    if description.get("dump_data", "tensor") != "tensor":
        raise ValueError(f"simulated device: data dump: dump_data must be 'tensor', got {description['dump_data']!r}")
    mode = description.get("dump_mode", "output")
    if mode not in _MODES:
        raise ValueError(f"simulated device: data dump: dump_mode must be one of {', '.join(_MODES)}, got {mode!r}")
    ranges = [one.split("-") for one in description.get("dump_step", "").split("|") if one]
    runs = tuple((int(one[0]), int(one[-1])) for one in ranges) or None
    graphs = {
        one["model_name"]: frozenset(one["layer"]) if one.get("layer") else None
        for one in description.get("dump_list", ())
        if one.get("model_name")
    }
    return Settings(Path(description["dump_path"]), *_MODES[mode], runs, graphs)


class Writer:
    """An observer of the engine that writes the files."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self._began = time.strftime("%Y%m%d%H%M%S")
        self._runs: dict[int, tuple[Plan, int, itertools.count[int]]] = {}  # by the identity of what it keeps
        self._lock = threading.Lock()
        self._last = 0

    def __call__(self, plan: Plan, values: Mapping[tuple[int, int], Tensor]) -> Callable[[Node, list[Tensor]], None]:
        with self._lock:
            _, number, runs = self._runs.setdefault(id(plan), (plan, 1 + len(self._runs), itertools.count()))
            run = next(runs)
        chosen, tasks = self.settings, itertools.count()
        if chosen is None or not _is_run(chosen, plan.name, run):
            return lambda node, results: None
        operators = chosen.operators.get(plan.name)
        at = chosen.root / self._began / f"{torch.npu.current_device()}" / plan.name / f"{number}" / f"{run}"
        at.mkdir(parents=True, exist_ok=True)

        def record(node: Node, results: list[Tensor]) -> None:
            task = next(tasks)
            if operators is not None and not {node.name, node.type} & operators:
                return
            given = [slot for slot in node.slots if slot is not None] if chosen.inputs else []
            # As they are after the operator has run, which may have written to one.
            inputs = [Typed(values[index, output], plan.nodes[index].outputs[output].type) for index, output in given]
            outputs = [Typed(value, one.type) for value, one in zip(results, node.outputs)] if chosen.outputs else []
            name = folder.file_name(node.type, node.name, task, 0, self._now())
            operator_file.write(at / name, node.name, inputs, outputs)

        return record

    def _now(self) -> int:
        """Microseconds, no two the same: readers sort by them."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1000)
            return self._last


def _is_run(chosen: Settings, graph: str, run: int) -> bool:
    if chosen.operators and graph not in chosen.operators:
        return False
    return chosen.runs is None or any(first <= run <= last for first, last in chosen.runs)


_writer, _open = Writer(), contextlib.ExitStack()


def set_dump(path: str) -> None:
    """Dump from now on as the file says: in place of what one before said. Raises ValueError for what is not built here."""
    description = json.loads(Path(path).read_text(encoding="utf-8"))
    chosen = settings(description.get("dump", {}))
    if _writer.settings is None:
        _open.enter_context(observe(_writer, all_threads=True))
    _writer.settings = chosen
