"""`moe-graph run`: commands such as torchrun, dumps of graphs, and tracebacks that show the program's own frames."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_graph.commands import launch, tracebacks
from moe_graph.foundation import cann

on_simulator = pytest.mark.skipif(
    not cann.torch_npu_is_installed() or cann.is_present(), reason="needs the torch_npu wheel, without CANN"
)


def moe_graph(folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MOE_GRAPH_SIM")}
    return subprocess.run(
        [sys.executable, "-m", "moe_graph", "run", "-q", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=environment,
    )


@pytest.mark.parametrize(
    "target, devices",
    [
        (["torchrun", "--nproc-per-node", "4", "x.py"], 4),
        (["torch.distributed.run", "--nproc_per_node=2", "x.py"], 2),
        (["torchrun", "--nproc-per-node=auto", "x.py"], None),
        (["x.py"], None),
    ],
)
def test_as_many_devices_as_ranks(monkeypatch, target, devices):
    monkeypatch.delenv("MOE_GRAPH_SIM_DEVICES", raising=False)
    assert launch._ranks(target) == devices
    monkeypatch.setenv("MOE_GRAPH_SIM_DEVICES", "8")
    assert launch._ranks(target) is None


def test_a_traceback_without_frames_of_a_program_stays_whole():
    ours = compile("raise ValueError", str(Path(tracebacks.__file__).parents[1] / "simulator" / "some.py"), "exec")
    with pytest.raises(ValueError) as raised:
        exec(ours)
    whole = raised.value.__traceback__
    trace = whole.tb_next  # of that file alone
    assert tracebacks._without_ours(trace) == (trace, 0)
    assert tracebacks._without_ours(trace, whole=False) == (None, 1)  # of what the error was caused by
    kept, left_out = tracebacks._without_ours(whole)
    assert (kept.tb_frame, kept.tb_next, left_out) == (whole.tb_frame, None, 1)
    assert tracebacks._without_ours(None) == (None, 0)


FAILING = """
import torch, torch_npu

def step():
    torch_npu.npu_sign_bits_pack(torch.ones(8).npu(), 1)

step()
"""


@on_simulator
def test_a_traceback_shows_the_programs_frames(tmp_path):
    (tmp_path / "program.py").write_text(FAILING)
    run = moe_graph(tmp_path, "program.py")
    assert run.returncode == 1
    assert (
        "runpy" not in run.stderr and "moe_graph/simulator" not in run.stderr and "moe_graph/commands" not in run.stderr
    )
    assert "line 5, in step" in run.stderr and "--full-traceback shows them" in run.stderr
    full = moe_graph(tmp_path, "--full-traceback", "program.py").stderr
    assert "runpy" in full and "moe_graph/simulator" in full


@on_simulator
def test_a_device_that_is_not_there_is_hinted_at(tmp_path):
    (tmp_path / "program.py").write_text("import torch\ntorch.npu.set_device(1)\n")
    assert "--devices N" in moe_graph(tmp_path, "program.py").stderr


@on_simulator
def test_torchrun_is_found_and_has_a_device_for_each_rank(tmp_path):
    (tmp_path / "program.py").write_text(
        "import os, torch\nr = int(os.environ['LOCAL_RANK'])\nprint(torch.ones(1, device=f'npu:{r}').device, torch.npu.device_count())"
    )
    run = moe_graph(tmp_path, "-m", "torch.distributed.run", "--nproc-per-node=2", "program.py")
    assert sorted(run.stdout.splitlines()) == ["npu:0 2", "npu:1 2"], run.stderr
    assert "RuntimeWarning" not in run.stderr


@on_simulator
@pytest.mark.parametrize("own, devices", [({}, "2"), ({"MOE_GRAPH_SIM_DEVICES": "3"}, "3")], ids=["not said", "said"])
def test_torchruns_workers_have_a_device_each_without_run(tmp_path, own, devices):
    """As after `moe-graph activate`: the launcher itself has no device."""
    (tmp_path / "worker.py").write_text("import moe_graph.simulator, torch\nprint(torch.npu.device_count())")
    environment = {**os.environ, "LOCAL_WORLD_SIZE": "2", **own}
    run = subprocess.run([sys.executable, "worker.py"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == f"{devices}\n", run.stderr


@on_simulator
def test_an_installed_command_is_run_by_its_name(tmp_path):
    (tmp_path / "test_it.py").write_text("import torch\ndef test_it(): assert torch.ones(1).npu().device.type == 'npu'")
    run = moe_graph(tmp_path, "pytest", "-q", "test_it.py")
    assert run.returncode == 0 and "1 passed" in run.stdout, run.stderr
    assert moe_graph(tmp_path, "pytest", "-q", "nothing.py").returncode == 4


@on_simulator
def test_dumps_without_a_line_of_the_program(tmp_path):
    (tmp_path / "program.py").write_text(
        "import torch, torch_npu, torchair\n"
        "f = torch.compile(lambda x: torch.relu(x) + 1, backend=torchair.get_npu_backend())\n"
        "print(f(torch.ones(2).npu()).tolist())\n"
    )
    run = moe_graph(tmp_path, "--dump", "graphs", "program.py")
    assert run.stdout == "[2.0, 2.0]\n", run.stderr
    names = sorted(path.name.partition("_graph")[0] for path in Path(tmp_path, "graphs").iterdir())
    assert names == ["dynamo_optimized", "dynamo_original"]
