"""The report: what a program used of the device, and where it would make a real one wait."""

import inspect
import subprocess
import sys

import pytest
import torch

import moe_graph
from moe_graph.simulator import report
from moe_graph.simulator.runtime import launches


def line(function, text):
    """'file:line in function' of the line of `function` that contains `text`."""
    lines, first = inspect.getsourcelines(function)
    (at,) = [number for number, source in enumerate(lines, first) if text in source]
    return f"{__file__}:{at} in {function.__name__}"


def program():
    x = torch.arange(6.0).npu()  # to the device
    for _ in range(3):
        if x.exp().sum() < 0:  # the condition
            raise AssertionError
    chosen = x[x > 2]  # the mask
    torch.npu.synchronize()
    torch.npu.current_stream().synchronize()
    event = torch.npu.Event()
    event.record()
    event.synchronize()
    return chosen.cpu()  # back


def test_operators_are_counted():
    with report.record() as seen:
        program()
    assert seen.operators["aten::exp"] == 3
    assert seen.operators["aten::_local_scalar_dense"] == 3
    assert not seen.missing
    before = dict(seen.operators)
    program()
    assert seen.operators == before  # the recording has ended


def test_copies_have_their_lines_and_sizes():
    with report.record() as seen:
        program()
    there = (line(program, "# to the device"), "to device", "copy")
    back = (line(program, "# back"), "to host", "copy")
    value = (line(program, "# the condition"), "to host", "read of a value")
    assert seen.copies == {there: 1, back: 1, value: 3}
    assert seen.copied[there] == 24 and seen.copied[back] == 12


def test_waits_have_their_lines():
    with report.record() as seen:
        program()
    assert seen.synchronisations == {
        (line(program, "# to the device"), "copy to device"): 1,
        (line(program, "# the condition"), "read of a value to host"): 3,
        (line(program, "# the mask"), "result size depends on the values"): 1,
        (line(program, "torch.npu.synchronize"), "synchronize of the device"): 1,
        (line(program, "current_stream().sync"), "synchronize of a stream"): 1,
        (line(program, "event.synchronize"), "synchronize of an event"): 1,
        (line(program, "# back"), "copy to host"): 1,
    }


def test_copies_that_do_not_wait():
    pinned = torch.ones(4).pin_memory()
    with report.record() as seen:
        x = pinned.to("npu", non_blocking=True)
        torch.ones(4).to("npu", non_blocking=True)  # pageable memory waits all the same
        x.to("cpu", non_blocking=True)
        x.to(torch.float16)
    assert sorted(key[1:] for key in seen.copies) == [
        ("to device", "copy"),
        ("to device", "copy, non_blocking"),
        ("to host", "copy, non_blocking"),
    ]
    assert sum(seen.synchronisations.values()) == 1


def test_an_index_by_numbers_does_not_wait():
    x, index = torch.ones(4).npu(), torch.tensor([1, 2]).npu()
    with report.record() as seen:
        x[index]
    assert seen.operators["aten::index.Tensor"] == 1 and not seen.synchronisations


def test_backward_has_no_line_of_the_program():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            assert gradient.sum().item() == 4
            return gradient * 2

    x = torch.ones(4, device="npu", requires_grad=True)
    with report.record() as seen:
        Reads.apply(x).sum().backward()
    ((where, why),) = seen.synchronisations
    assert where.startswith(__file__) and where.endswith("in backward") and why == "read of a value to host"


def test_what_is_missing_and_what_the_device_computes_itself():
    tokens, counts = torch.randn(4, 8).half().npu(), torch.tensor([[1, 3]]).npu()
    with report.record() as seen:
        torch.ops.npu.npu_moe_re_routing(tokens, counts)
        with pytest.raises(RuntimeError):
            torch.ops.npu.attention_worker_scheduler(torch.ones(8, device="npu"))
    assert seen.operators["npu::npu_moe_re_routing"] == 1
    assert seen.missing == {"npu.attention_worker_scheduler.default": 1, "aclnnInplaceAttentionWorkerScheduler": 1}


def test_communication_is_counted():
    torch.distributed.init_process_group("hccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with report.record() as seen:
            torch.distributed.all_reduce(torch.ones(2, device="npu"))
            torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
    assert seen.communications == {"hccl::all_reduce": 1, "hccl::barrier": 1}


def test_what_nothing_serves_is_listed():
    with report.record() as seen:
        for observe in launches.missing_observers:
            observe("npu::some_operator")
    assert seen.missing == {"npu::some_operator": 1}
    assert [table.title for table in seen.tables()] == ["asked for, and not simulated"]


def test_tables():
    with report.record() as seen:
        assert moe_graph.moe_re_routing(torch.ones(2, 2).half().npu(), torch.tensor([[1, 1]]).npu())
        program()
    titles = [table.title for table in seen.tables()]
    assert titles == ["operators", "copies between host and device", "the host waits for the device"]


def test_report_of_a_whole_program(tmp_path):
    script = tmp_path / "program.py"
    script.write_text("import torch\nx = torch.ones(3).npu()\nprint((x + 1).sum().item())\n")
    command = [sys.executable, "-m", "moe_graph", "run", "-q", "--report", "program.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "6.0\n", done.stderr[-2000:]
    assert "aten::add.Tensor" in done.stderr and "program.py:3 in <module>" in done.stderr
    assert "the host waits for the device" in done.stderr


def test_the_report_is_shown_when_the_program_fails(tmp_path):
    script = tmp_path / "program.py"
    script.write_text("import torch\ntorch.ones(3).npu()\nraise SystemExit(3)\n")
    command = [sys.executable, "-m", "moe_graph", "run", "-q", "--report", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and "copy to device" in done.stderr


def test_no_report_unless_asked(tmp_path):
    script = tmp_path / "program.py"
    script.write_text("import torch\ntorch.ones(3).npu()\n")
    command = [sys.executable, "-m", "moe_graph", "run", "-q", str(script)]
    assert "report" not in subprocess.run(command, capture_output=True, text=True, timeout=120).stderr


def test_captures_and_replays_are_told():
    x = torch.ones(4).npu()
    with report.record() as seen:
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            x.add_(1).mul_(2)
        graph.replay()
        graph.replay()
    ((line, launches), captures), *others = seen.captures.items()
    assert "test_captures_and_replays_are_told" in line and (launches, captures, others) == (2, 1, [])
    assert list(seen.replays.values()) == [2] and not seen.recaptures
    assert seen.operators["aten::add_.Tensor"] == 1


def test_torchairs_recaptures_are_told_with_the_reason():
    import torchair

    config = torchair.CompilerConfig()
    config.mode = "reduce-overhead"
    step = torch.compile(lambda x: x.add_(1), backend=torchair.get_npu_backend(compiler_config=config), dynamic=False)
    with report.record() as seen:
        kept = [torch.zeros(3).npu() for _ in range(2)]
        for x in kept:
            step(x)
    assert [x.cpu().tolist() for x in kept] == [[1, 1, 1], [1, 1, 1]]
    ((_, why), times), *others = seen.recaptures.items()
    assert "memory of an input that the graph writes to" in why and (times, others) == (1, [])
    assert all(__file__ in line for line, _ in seen.captures)  # and not the code that torchair made
