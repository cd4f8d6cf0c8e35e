"""pytest with the options of this package, as a model repository runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_graph.foundation import cann

CHECKOUT = Path(__file__).parents[2]
on_simulator = pytest.mark.skipif(
    not cann.torch_npu_is_installed() or cann.is_present(), reason="needs the torch_npu wheel, without CANN"
)


def run(folder, *arguments):
    """pytest in a folder, with the plugin named: whether it is found by itself depends on the installation."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MOE_GRAPH", "PYTEST"))}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:moe_graph",
            "-p",
            "moe_graph_command",
            "-p",
            "no:warnings",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(CHECKOUT)},
    )


def test_without_the_option_nothing_is_imported(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test_it(): assert 'torch' not in sys.modules and 'moe_graph' not in sys.modules"
    )
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout


def test_a_wrong_product_is_named(tmp_path):
    done = run(tmp_path, "--npu-sim=A5")
    assert done.returncode == 4 and "A5" in done.stderr and "A2" in done.stderr
    (tmp_path / "pytest.ini").write_text("[pytest]\nnpu_sim = A5\n")
    done = run(tmp_path)
    assert done.returncode == 4 and "npu_sim must be one of A2, A3, 950, got 'A5'" in done.stderr


@on_simulator
def test_device_children_fixtures_and_recorded_graphs(tmp_path):
    (tmp_path / "conftest.py").write_text("import torch\n")  # before any test module
    (tmp_path / "test_it.py").write_text(
        """
import subprocess, sys
import torch, torch_npu
from moe_graph import testing

def test_device():
    assert torch.npu.get_device_name().startswith("Ascend910_93")  # A3

def test_child():
    code = "import torch; print(torch.ones(2).npu().device)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "npu:0\\n"

def test_graph(npu_lower):
    graph = npu_lower(lambda x: torch.relu(x) + 1, torch.randn(3)).graph
    testing.assert_unchanged(graph, "graph.txt")

def test_failure(npu_lower):
    lowered = npu_lower(lambda x: torch.relu(x) + 1, torch.randn(3))
    assert lowered is None
"""
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nnpu_sim = A3\n")
    first = run(tmp_path)
    assert "--npu-graphs-update" in first.stdout and "2 failed, 2 passed" in first.stdout, first.stdout
    assert "<Lowered: 1 call, graphs [<Graph " in first.stdout
    message = next(line for line in first.stdout.splitlines() if line.startswith("E ") and "Lowered" in line)
    assert len(message) < 300 and "definition" not in first.stdout
    second = run(tmp_path, "--npu-graphs-update", "-k", "graph")
    assert "1 passed" in second.stdout and "Relu" in (tmp_path / "graph.txt").read_text(), second.stdout
