"""torchair's declared cases on the host engine: as many agree with eager PyTorch as have been counted, and what fails is known."""

from __future__ import annotations

import collections
import json
import subprocess
import sys

import pytest

from moe_graph.conformance import known

# Counted with torch 2.13.0 and torch_npu 2.13.0; docs/engine.md cites them. Fewer that agree, or more that fail, are an error.
AGREE, REFUSED, FAILED = 773, 22, 16


@pytest.fixture(scope="module")
def walk():
    """Outcomes of the whole walk, by the command. It has a process of its own: thousands of graphs leave much behind."""
    command = [sys.executable, "-m", "moe_graph", "conformance", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert result.returncode in (0, 1), result.stderr[-3000:]
    return json.loads(result.stdout)["cases"]


@pytest.mark.slow
def test_as_many_agree_as_were_counted(walk):
    counts = collections.Counter(case["status"] for case in walk)
    listed = [
        f"{case['operator']} #{case['case']}: {case['reason'][:200]}" for case in walk if case["status"] == "failed"
    ]
    assert counts["passed"] + counts["random"] >= AGREE and counts["failed"] <= FAILED, "\n".join(listed)
    assert counts["refused"] == REFUSED


@pytest.mark.slow
def test_what_fails_is_torchairs(walk):
    failing = {case["operator"] for case in walk if case["status"] == "failed"}
    assert failing <= set(known.TORCHAIR) | set(known.FAULTY_CASES)
    assert set(known.FAULTY_CASES) <= failing


@pytest.mark.slow
def test_random_operators_are_checked_as_random(walk):
    random = {case["operator"] for case in walk if case["status"] == "random"}
    assert {"aten.rand.default", "aten.randn.default", "aten.bernoulli.default"} <= random


def conformance(*arguments):
    command = [sys.executable, "-m", "moe_graph", "conformance", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_report_and_pattern():
    result = conformance("--op", "aten.flip*")
    assert result.returncode == 0 and "agree with eager PyTorch" in result.stdout, result.stderr
    assert conformance("--op", "nothing like it").returncode == 2


def test_a_broken_kernel_fails_its_cases():
    code = """
import sys
from moe_graph.conformance import command
import moe_graph.simulator, torch
from moe_graph.engine import kernels, registry
def broken(x: torch.Tensor) -> torch.Tensor:
    return x.abs() + 1e-3
registry._kernels["Abs"] = registry._describe(broken)
sys.exit(command.main(["--op", "aten.abs.default"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and "Failed" in result.stdout and "aten.abs.default #0" in result.stdout, (
        result.stderr
    )
