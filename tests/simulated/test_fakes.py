"""Importing moe_graph takes nothing away: what torch_npu's fake implementations accept or raise without it, they do with it.

Two processes make the same calls, one without this package; nothing of the simulated device but its libraries is in either.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from fakes.calls import CALLS, UNSATISFIABLE

import moe_graph
from moe_graph.simulator.runtime import build
from versions import need_torch

WALK = Path(__file__).parents[1] / "fakes" / "walk.py"
WITHOUT, WITH = "", "import moe_graph"
UNREGISTERED = "import moe_graph; moe_graph.unregister()"
STRICTER = (
    "npu_moe_re_routing"  # refuses what no product takes, with ValueError; where it accepts, results are torch_npu's
)


def start(before: str, names: Iterable[str], attempts: int) -> subprocess.Popen:
    libraries = str(build.ensure_built()[0].parent)
    return subprocess.Popen(
        [sys.executable, str(WALK), "--before", before, "--attempts", str(attempts), *names],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "LD_LIBRARY_PATH": libraries,
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
            "PYTHONPATH": str(Path(moe_graph.__file__).parents[1]),
        },
    )


def outcomes(process: subprocess.Popen) -> dict:
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0
    return dict(json.loads(line) for line in printed.splitlines() if line.startswith("["))


def kind(outcome: dict) -> object:
    return outcome.get("raises") or outcome["result"]


def differences(without: dict, with_us: dict) -> list:
    """Calls that gave another result or kind of exception."""
    assert without.keys() == with_us.keys()
    found = []
    for name, theirs in without.items():
        assert len(theirs) == len(with_us[name]) > 0, name
        for number, (before, after) in enumerate(zip(theirs, with_us[name])):
            stricter = name == STRICTER and after.get("raises") == "ValueError"
            if kind(before) != kind(after) and not stricter:
                found.append(f"{name}, call {number}: {before} -> {after}")
    return found


def summary(without: dict) -> set:
    """The operators with a call that is accepted without this package; prints how many, and how many calls."""
    every = [outcome for calls in without.values() for outcome in calls]
    accepted = sum("result" in outcome for outcome in every)
    satisfied = {name for name, calls in without.items() if any("result" in outcome for outcome in calls)}
    print(
        f"{len(without)} operators, {len(satisfied)} with a call that is accepted without moe_graph; {len(every)} calls: "
        f"{accepted} accepted, {len(every) - accepted} refused, both without and with it"
    )
    return satisfied


@pytest.fixture(scope="module")
def of_the_layer():
    """The outcomes of the layer's operators without this package, with it, and when it has taken itself back."""
    need_torch(2, 13)  # the arguments are this version's
    names = {name for name in CALLS if "moe" in name or "grouped_matmul" in name or "swiglu" in name}
    names |= {"npu_swiglu_backward", "npu_moe_compute_expert_tokens", "npu_dynamic_quant"}
    return [outcomes(child) for child in [start(before, sorted(names), 12) for before in (WITHOUT, WITH, UNREGISTERED)]]


def test_operators_of_the_layer(of_the_layer):
    without, with_us, _ = of_the_layer
    assert (found := differences(without, with_us)) == [], "\n".join(found)
    assert summary(without) == without.keys()
    assert any("raises" in call for call in with_us[STRICTER]) and any("result" in call for call in with_us[STRICTER])


def test_unregistering_restores_torch_npus(of_the_layer):
    without, _, back = of_the_layer
    assert {name: list(map(kind, calls)) for name, calls in back.items()} == {
        name: list(map(kind, calls)) for name, calls in without.items()
    }


@pytest.mark.slow
def test_every_operator():
    """About two minutes."""
    need_torch(2, 13)
    without, with_us = [outcomes(child) for child in [start(before, (), 60) for before in (WITHOUT, WITH)]]
    assert (found := differences(without, with_us)) == [], "\n".join(found)
    assert len(without) > 200
    assert without.keys() - summary(without) == UNSATISFIABLE.keys()
