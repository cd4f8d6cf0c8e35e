"""examples/moe_model.py: its table on one rank, and on several in every mode."""

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "moe_model.py"


def cells(printed):
    """The rows of the table: what stands before the first cell of the modes -> the cells."""
    rows = [[cell.strip() for cell in line.strip("│\n ").split("│")] for line in printed.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    specification = importlib.util.spec_from_file_location("moe_model", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    yield module
    torch._dynamo.reset()


def test_decodes_in_one_graph_as_plain_pytorch_does(example, capsys):
    arguments = argparse.Namespace(mode=["ge"], ranks=1, steps=2, int8=False, plain=True)
    example.work(0, arguments, "")
    found = cells(capsys.readouterr().out)
    (difference,) = found["largest difference of logits from dense PyTorch"]
    assert 0 < float(difference.rstrip("%")) < 3
    assert found["recompilations"] == ["0"] and int(found["nodes of the graph"][0]) > 100


def test_a_wrong_operator_is_found(example, monkeypatch):
    """The comparison is no decoration: silu in place of sigmoid's weights, or a forgotten way back, does not pass."""
    monkeypatch.setattr(example.npu, "npu_swiglu", lambda x: torch.nn.functional.silu(x[..., : x.shape[-1] // 2]))
    arguments = argparse.Namespace(mode=["eager"], ranks=1, steps=1, int8=False, plain=True)
    with pytest.raises(SystemExit, match="are not those of dense PyTorch"):
        example.work(0, arguments, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks, options, limit", [(2, [], 3), (2, ["--int8"], 5), (4, ["--plain"], 3)], ids=["2 ranks", "int8", "4 ranks"]
)
def test_every_mode_on_several_ranks(ranks, options, limit):
    command = [sys.executable, "-m", "moe_graph", "run", "-q", "--devices", str(ranks), str(EXAMPLE)]
    done = subprocess.run(
        [*command, "--ranks", str(ranks), *options], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = cells(done.stdout)
    (label,) = [label for label in found if re.match("largest difference", label)]
    assert all(0 < float(difference.rstrip("%")) < limit for difference in found[label])
    assert found["collectives of a decode step"] == ["4", "4", "4"]  # dispatch and combine of two layers
    assert found["recompilations"] == ["-", "0", "0"]
    assert all(int(size) > 0 for size in found["bytes to other ranks and back, a decoded token"])
