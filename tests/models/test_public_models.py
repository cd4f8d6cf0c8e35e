"""Public Ascend models, unchanged, on the simulated device: the logits of prefill and decode against transformers' on the CPU.

transformers computes in float32 from the same bfloat16 weights; the public code in bfloat16. So the difference is that of rounding, told as
a part of the largest logit. Each row is printed: model, ranks, mode, largest difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
from configurations import MODELS

DRIVER = Path(__file__).with_name("public_model.py")
FAULTS = Path(__file__).parents[1] / "graph_faults.py"
TOKENS = 9  # of the prefill and 8 decode steps
CASES = [(name, ranks, mode) for name, model in MODELS.items() for ranks in model.ranks for mode in model.modes]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Name -> (folder of the checkpoint, transformers' model), each made once."""
    models: dict[str, tuple[Path, torch.nn.Module]] = {}

    def make(name: str) -> tuple[Path, torch.nn.Module]:
        if name not in models:
            folder = tmp_path_factory.mktemp(name)
            models[name] = folder, checkpoint.write(MODELS[name], folder)
        return models[name]

    return make


def launched(ranks: int, *program: object) -> str:
    """What a program on so many ranks has printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, "-m", "moe_graph", "run", "-q", "--devices", str(ranks), *launcher]
    result = subprocess.run(
        [*command, *map(str, program)],
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result.stdout


def run(name: str, ranks: int, mode: str, folder: Path, *extra: str) -> list[tuple[list, list[torch.Tensor]]]:
    """What each rank has written."""
    for old in folder.glob("rank_*.pt"):
        old.unlink()
    launched(ranks, DRIVER, name, mode, folder, TOKENS, *extra)
    return [torch.load(folder / f"rank_{rank}.pt") for rank in range(ranks)]


def difference(name: str, found: list, model: torch.nn.Module) -> float:
    """The largest difference of the logits from transformers', as a part of the largest logit."""
    largest = 0.0
    for requests, steps in found:
        for row, (prompt, generated) in enumerate(requests):
            assert len(generated) >= TOKENS and len(steps) >= TOKENS, f"{name} has generated {len(generated)} tokens"
            ours = torch.stack([step[row] for step in steps[:TOKENS]])
            theirs = checkpoint.logits(model, prompt + generated[: TOKENS - 1], TOKENS)
            largest = max(largest, float((ours[:, : theirs.shape[1]] - theirs).abs().max() / theirs.abs().max()))
    return largest


@pytest.mark.parametrize("name, ranks, mode", CASES)
def test_logits_are_transformers(name, ranks, mode, made, capsys):
    """In a graph mode each node is held against eager mode, too: whole numbers, as the chosen experts, must be equal."""
    folder, model = made(name)
    found = run(name, ranks, mode, folder, *(["watch"] if mode != "eager" else []))
    largest = difference(name, found, model)
    with capsys.disabled():
        print(f"\n{name:18} {ranks} ranks  {mode:12} largest difference {largest:.4f} of the largest logit")
    assert largest < MODELS[name].limit
    if mode != "eager":
        agree(name, ranks, folder, capsys)


def agree(name: str, ranks: int, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Each node of each run of a graph is eager mode's within a rounding, on each rank, and eager mode has each that is seen."""
    for rank in range(ranks):
        seen = json.loads((folder / f"watch_{rank}.json").read_text())
        with capsys.disabled():
            print(f"{name:18} rank {rank}: {seen['counts']}, no reference: {seen['no_reference']}")
        assert seen["first"] is None, seen["first"]
        assert seen["counts"]["agrees"] and not seen["no_reference"]


@pytest.mark.parametrize("mode", ["eager", "ge_graph", "npugraph_ex"])
def test_a_perturbed_operator_is_noticed(mode, made, capsys):
    """The comparison sees that one operator gives a twentieth more."""
    folder, model = made("qwen3_8b")
    found = difference("qwen3_8b", run("qwen3_8b", 1, mode, folder, "perturb"), model)
    with capsys.disabled():
        print(
            f"\nqwen3_8b, npu_add_rms_norm a twentieth more, {mode}: largest difference {found:.4f} of the largest logit"
        )
    assert found > MODELS["qwen3_8b"].limit


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if "ge_graph" in model.modes])
def test_graphs_pass_inspect_check(name, made, capsys):
    """No error in the graphs of prefill and decode, and 95 % of the faults that are put into them are found."""
    ranks = min(MODELS[name].ranks)
    printed = launched(ranks, FAULTS, DRIVER, name, "ge_graph", made(name)[0], 2)
    with capsys.disabled():
        print(f"\n{name:18} {ranks} ranks: {printed[printed.find('in all') :].strip()}")
