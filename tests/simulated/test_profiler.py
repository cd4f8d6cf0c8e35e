"""Profilers on the simulated device: torch's own and torch_npu's record the host side, and say so."""

import json
import subprocess
import sys
from pathlib import Path

import torch
import torch_npu
from torch.profiler import ProfilerActivity

from versions import need_torch


def names(profile):
    return {event.name for event in profile.events()}


def test_torchs_profiler_records_the_host_whatever_activities_are_asked_for(tmp_path):
    need_torch(2, 7)
    x = torch.ones(3).npu()
    for activities in (None, [ProfilerActivity.CPU], None, [ProfilerActivity.CPU, ProfilerActivity.PrivateUse1]):
        with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
            (x * 2).cpu()
        assert {"aten::mul", "aten::_to_copy"} <= names(profile)
        assert [event.input_shapes[0] for event in profile.events() if event.name == "aten::mul"] == [[3]]
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any(event.get("name") == "aten::mul" for event in events)


def test_torch_npus_profiler_records_the_host(tmp_path):
    need_torch(2, 7)
    profiler = torch_npu.profiler
    with profiler.profile(
        activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU],
        on_trace_ready=profiler.tensorboard_trace_handler(str(tmp_path)),
        record_shapes=True,
        profile_memory=True,
        with_stack=True,
    ):
        torch_npu.npu.mstx.mark("a mark")
        (torch.ones(3).npu() * 2).cpu()
    (folder,) = tmp_path.glob("*_ascend_pt")
    trace = json.loads((folder / "ASCEND_PROFILER_OUTPUT" / "trace_view.json").read_text())
    found = [event["name"] for event in trace]
    assert found.count("aten::mul") == 1 and "aten::ones" in found
    assert "aten::mul" in (folder / "ASCEND_PROFILER_OUTPUT" / "operator_details.csv").read_text()


def test_a_program_is_told_once_that_times_are_the_hosts(tmp_path):
    need_torch(2, 7)
    program = Path(tmp_path / "program.py")
    program.write_text(
        "import torch, torch_npu\nfor _ in range(2):\n    with torch.profiler.profile():\n        torch.ones(3).npu() * 2\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "moe_graph", "run", "-q", str(program)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("moe_graph: the device is simulated: what is profiled, and its times, are the host's") == 1
