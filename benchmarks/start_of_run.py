"""What `moe-graph run` adds to the start of a program that imports torch and torch_npu: processor time of whole processes.

    python benchmarks/start_of_run.py [--quick]

The peer is plain Python with the start-up hook of `run` on its path, which starts the same device when torch is imported.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import measure


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows() -> Iterator[measure.Row]:
    """One row: the median ratio of starts in turns."""
    hook = Path(find_spec("moe_graph").origin).parent / "simulator" / "inherit"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.py"
        program.write_text("import torch, torch_npu\n")
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        with_hook = {**environment, "PYTHONPATH": os.pathsep.join([str(hook), os.environ.get("PYTHONPATH", "")])}
        pairs = []
        for _ in range(1 + measure.rounds() // 4):
            run = _seconds([sys.executable, "-m", "moe_graph", "run", "--quiet", str(program)], environment)
            pairs.append((run, _seconds([sys.executable, str(program)], with_hook)))
    ratio = statistics.median(run / hooked for run, hooked in pairs[1:])
    detail = " / ".join(measure.shown(statistics.median(side)) for side in zip(*pairs[1:]))
    yield measure.Row("start of run, of Python with its hook", ratio, "x", 1.15, detail)


if __name__ == "__main__":
    measure.main("start of run", rows)
