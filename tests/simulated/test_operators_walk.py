"""Every operator that torch_npu registers for its device, called in child processes: each is computed, or an error names it; none aborts.

Operators need more than their schemas say, so some are refused by checks before they reach a kernel; the walk says how many.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from moe_graph.simulator.eager import install
from versions import need_torch

FOLDER = tempfile.TemporaryDirectory()  # npu_save_tensor and its kind write files where they run
WORKER = Path(__file__).parent / "workers" / "walk.py"
SECONDS = 120  # for all operators of a child without news


def walk(names, mode="values", soc="A2"):
    """name -> (outcome, message); "died" and "hung" with the exit code or what was written last."""
    found, names = {}, list(names)
    while names:
        command = [
            sys.executable,
            "-c",
            f"import moe_graph.simulator, runpy, sys; runpy.run_path({str(WORKER)!r})",
            mode,
            *names,
        ]
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "MOE_GRAPH_SIM_SOC": soc},
            cwd=FOLDER.name,
        )
        try:
            out, errors = child.communicate(timeout=SECONDS)
            ended = ("died", f"exit code {child.returncode}: {errors[-300:]}")
        except subprocess.TimeoutExpired:
            child.kill()
            out, errors = child.communicate()
            ended = ("hung", errors[-300:])
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        found.update({line["name"]: (line["outcome"], line["text"]) for line in lines if "name" in line})
        begun = [line["begun"] for line in lines if "begun" in line]
        assert begun, f"the child did not begin: {errors[-2000:]}"
        if begun[-1] not in found:
            found[begun[-1]] = ended
        names = names[names.index(begun[-1]) + 1 :]
    return found


def check(found):
    """None died or hung, and each error is one that a user can read. Returns how many there are of each outcome."""
    wrong = {name: result for name, result in found.items() if result[0] in ("died", "hung")}
    for name, (outcome, text) in found.items():
        operator = name.partition("::")[2].partition(".")[0].strip("_")
        if "_ZN" in text or "GetApiFuncAddr" in text:
            wrong[name] = outcome, text
        if outcome == "not simulated" and operator not in text:
            wrong[name] = outcome, text
        if outcome == "refused" and "is not modelled" in text:
            wrong[name] = outcome, text
    assert not wrong, "\n".join(f"{name}: {outcome}: {text[:400]}" for name, (outcome, text) in wrong.items())
    return Counter(outcome for outcome, _ in found.values())


# torch_npu's adapters crash by themselves, with CANN, too: one takes three chunks of the gates' second size unseen, one reads offs=None.
CRASH_BY_THEMSELVES = {"aten::_thnn_fused_gru_cell", "aten::_scaled_grouped_mm"}


def operators():
    """All of npu and atb, and what is nobody's of aten."""
    served = install.coverage()
    names = (name for name in served if name.startswith(("npu::", "atb::")) or not served[name])
    return sorted(set(names) - CRASH_BY_THEMSELVES)


def test_a_tenth_of_the_operators():
    need_torch(2, 9)
    names = operators()[::10]
    counts = check(walk(names))
    assert counts["served"] + counts["not simulated"] >= len(names) // 2, counts


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["values", "gradients"])
@pytest.mark.parametrize("soc", ["A2", "A3", "950"])
def test_all_operators(soc, mode, capsys):
    need_torch(2, 9)
    names = operators()
    found = walk(names, mode, soc)
    counts = check(found)
    with capsys.disabled():
        print(f"\n{soc}, {mode}: {len(names)} operators of npu and atb: {dict(counts)}")
        print(
            "refused:",
            *(f"{name}: {text[:150]!r}" for name, (outcome, text) in found.items() if outcome == "refused"),
            sep="\n  ",
        )
    assert counts["served"] + counts["not simulated"] >= (250 if soc == "950" else 300), counts  # 950 has no aclop
