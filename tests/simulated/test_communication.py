"""torch.distributed on the simulated device: several processes, the backend `hccl`, NPU tensors."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WORKERS = Path(__file__).parent / "workers"
CASES = [
    node.name
    for node in ast.parse((WORKERS / "collectives.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("case_")
]


def run_ranks(folder, size, worker, *arguments, may_die=()):
    """Run a worker once per rank, as processes of their own; return the results by rank. All but `may_die` must exit with 0."""
    processes = []
    for rank in range(size):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "moe_graph", "run", "-q", "--devices", str(size), str(WORKERS / worker)]
        with open(folder / f"{rank}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    [*command, str(folder / "rendezvous"), str(folder), *arguments],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [process.wait(240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, code in enumerate(codes):
        assert code == 0 or rank in may_die, (folder / f"{rank}.log").read_text()[-3000:]
    return [
        json.loads((folder / f"{rank}.json").read_text()) if (folder / f"{rank}.json").exists() else None
        for rank in range(size)
    ]


@pytest.fixture(scope="module", params=[2, 3], ids=["two ranks", "three ranks"])
def collectives(request, tmp_path_factory):
    return run_ranks(tmp_path_factory.mktemp("collectives"), request.param, "collectives.py")


@pytest.mark.parametrize("case", CASES)
def test_collectives(collectives, case):
    assert [results.get(case) for results in collectives] == ["ok"] * len(collectives)


@pytest.mark.parametrize("way", ["ddp", "ddp_hook", "fsdp", "fully_shard"])
def test_training_equals_one_process_on_the_cpu(tmp_path, way):
    for results in run_ranks(tmp_path, 2, "training.py", way):
        assert len(results["losses"]) == 50 and results["names"] > 10
        for expected, got in results["losses"]:
            assert got == pytest.approx(expected, rel=1e-4)
        assert results["gradient_error"] < 1e-5
        assert results["parameter_error"] < 1e-3


@pytest.mark.parametrize("way, size", [("wait", 3), ("future", 2), ("ddp", 2), ("late", 2)])
def test_a_lost_rank_is_an_error_soon(tmp_path, way, size):
    results = run_ranks(tmp_path, size, "lost_rank.py", way, may_die=[size - 1])
    assert results[-1] is None
    for rank, result in enumerate(results[:-1]):
        assert result["seen"] is not None, "the others went on without the lost rank"
        _, is_runtime_error, message = result["seen"]
        assert is_runtime_error and f"on rank {rank} of {size}" in message
        assert "Connection closed" in message or "imed out" in message or "reset" in message
        assert result["seconds"] < 30


def test_torchrun_starts_workers_on_the_simulated_device(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
            import os
            import torch, torch.distributed as dist, torch_npu

            torch.npu.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("hccl")
            total = torch.full((1,), dist.get_rank() + 1.0, device="npu")
            dist.all_reduce(total)
            print(f"rank {dist.get_rank()}: {total.item()} on {total.device}", flush=True)
            dist.destroy_process_group()
        """)
    )
    command = "-m moe_graph run --devices 2 -m torch.distributed.run --nproc-per-node=2".split()
    done = subprocess.run([sys.executable, *command, str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == ["rank 0: 3.0 on npu:0", "rank 1: 3.0 on npu:1"]


def test_spawned_processes_have_the_device(tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(
        textwrap.dedent("""
            import torch
            import torch.multiprocessing as mp
            import torch.distributed as dist

            def work(rank, path):
                torch.npu.set_device(rank)
                dist.init_process_group("hccl", init_method="file://" + path, rank=rank, world_size=2)
                x = torch.ones(1, device="npu")
                dist.all_reduce(x)
                assert x.item() == 2

            if __name__ == "__main__":
                import sys
                mp.spawn(work, (sys.argv[1],), nprocs=2)
                print("joined")
        """)
    )
    command = [sys.executable, "-m", "moe_graph", "run", "-q", "--devices", "2", str(script), str(tmp_path / "meet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout == "joined\n", done.stderr[-3000:]


@pytest.mark.parametrize("first", ["torch", "torch_npu", "moe_graph", "moe_graph.simulator"])
def test_children_have_the_device_whatever_they_import_first(tmp_path, first):
    child = (
        f"import {first}; import torch, torch_npu; print(torch.ones(2).npu().add(1).tolist(), torch.npu.device_count())"
    )
    script = tmp_path / "parent.py"
    script.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)\n")
    command = [sys.executable, "-m", "moe_graph", "run", "-q", "--devices", "3", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[2.0, 2.0] 3\n", done.stderr[-2000:]


def test_children_of_a_test_have_the_device():
    """By the plugin of pytest alone, which these tests run with."""
    child = "import torch, torch_npu; print(torch.ones(2).npu().add(1).tolist())"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[2.0, 2.0]\n", done.stderr[-2000:]


QUESTION = "from importlib.util import find_spec; assert find_spec('torch').origin and find_spec('torch_npu').origin; "


@pytest.mark.parametrize("first", ["torch", "torch_npu"])
def test_children_may_ask_for_torch_before_they_import_it(tmp_path, first):
    child = QUESTION * 2 + f"import {first}; import torch, torch_npu; print(torch.ones(2).npu().tolist())"
    script = tmp_path / "parent.py"
    script.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)\n")
    command = [sys.executable, "-m", "moe_graph", "run", "-q", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[1.0, 1.0]\n", done.stderr[-2000:]


def test_children_keep_their_own_sitecustomize_and_need_no_torch(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.from_site = True\n")
    child = "import sys; print(sys.from_site, 'torch' in sys.modules, 'moe_graph' in sys.modules)"
    script = tmp_path / "parent.py"
    script.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "moe_graph", "run", "-q", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout == "True False False\n", done.stderr[-2000:]
