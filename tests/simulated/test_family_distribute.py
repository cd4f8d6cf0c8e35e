"""The distributing operators between processes with a simulated device each, eager and in graphs, the group by HCCL's name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[1] / "family" / "distribute_worker.py"


def run_ranks(tmp_path, *what):
    size, processes = 2, []
    for rank in range(size):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "moe_graph", "run", "-q", "--devices", str(size), str(WORKER)]
        with open(tmp_path / f"{rank}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    [*command, "npu", str(tmp_path / "rendezvous"), str(tmp_path), *what],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [process.wait(200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, code in enumerate(codes):
        assert code == 0, (tmp_path / f"{rank}.log").read_text()[-3000:]
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        failed = [f"{case}\n{text}" for case, text in results.items() if text != "ok"]
        assert results and not failed, "\n".join(failed)


@pytest.mark.slow
def test_ranks_equal_a_dense_layer(tmp_path):
    run_ranks(tmp_path)


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_graphs_of_ranks_equal_a_dense_layer(tmp_path, step):
    """MoeDistributeDispatchV2 and MoeDistributeCombineV2 find the group by its name, and give what the eager operators give."""
    run_ranks(tmp_path, "graph", str(step))
