"""examples/train_moe.py: training with torch_npu's fused operators has the CPU's losses, on one rank and with the experts on several."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_moe.py"


@pytest.fixture(scope="module")
def example():
    specification = importlib.util.spec_from_file_location("train_moe", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_losses_are_the_cpus(example):
    losses = example.train(rank=0, ranks=1, steps=5)
    for found, expected in losses:
        assert found == pytest.approx(expected, rel=1e-5)
    assert len({expected for _, expected in losses}) == 5


def test_another_optimizer_shows(example, monkeypatch):
    """The comparison is no decoration: with the AdamW of other numbers the losses differ."""
    optimizer = example.torch_npu.optim.NpuFusedAdamW
    monkeypatch.setattr(
        example.torch_npu.optim,
        "NpuFusedAdamW",
        lambda parameters, **given: optimizer(parameters, **{**given, "betas": (0.9, 0.999)}),
    )
    losses = example.train(rank=0, ranks=1, steps=3)
    assert any(abs(found - expected) > example.TOLERANCE * expected for found, expected in losses)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_experts_on_several_ranks_train_as_on_the_cpu(ranks):
    command = [sys.executable, "-m", "moe_graph", "run", "-q", "--devices", str(ranks), str(EXAMPLE)]
    done = subprocess.run([*command, "--ranks", str(ranks)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert f"{ranks} ranks" in done.stdout and "│ 20 " in done.stdout
