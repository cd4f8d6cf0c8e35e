"""Faults on purpose: what a program sees of them, and that the device goes on afterwards."""

import os
import subprocess
import sys
import time

import pytest
import torch

import moe_graph
from moe_graph.simulator import SimulatorError, faults
from versions import need_torch


def after():
    """The device works."""
    assert torch.ones(4, device="npu").exp().sum().item() == pytest.approx(4 * 2.718281828)
    torch.npu.synchronize()


def test_memory_limit_is_torchs_out_of_memory_error():
    need_torch(2, 9)
    with faults.memory_limit(0.125):
        torch.ones(1 << 10, device="npu")
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            torch.empty(1 << 28, dtype=torch.uint8, device="npu")
    torch.empty(1 << 28, dtype=torch.uint8, device="npu")
    after()


def test_memory_limit_leaves_the_environment_as_it_was(monkeypatch):
    need_torch(2, 9)
    monkeypatch.setenv("MOE_GRAPH_SIM_MEMORY_GB", "2")
    with pytest.raises(ZeroDivisionError), faults.memory_limit(1):
        assert torch.npu.mem_get_info()[1] == 1 << 30
        raise ZeroDivisionError
    assert torch.npu.mem_get_info()[1] == 2 << 30
    with pytest.raises(ValueError, match="gib must be above 0, got 0"), faults.memory_limit(0):
        pass


def test_failing_kernel():
    x = torch.ones(4, device="npu")
    with faults.failing_kernel("aten::exp"):
        with pytest.raises(RuntimeError, match=r"call aten::exp failed, error code is 361001[\s\S]*on purpose"):
            x.exp()
        assert x.log().sum().item() == 0  # others work
    after()


def test_failing_kernel_from_a_call_on_and_of_one_overload():
    x = torch.ones(4, device="npu")
    with faults.failing_kernel("aten::exp", from_call=3):
        x.exp(), x.exp()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="on purpose"):
                x.exp()
    with faults.failing_kernel("aten::add.Scalar"):
        x + x
    with faults.failing_kernel("aten::add.Tensor"), pytest.raises(RuntimeError, match="aten::add.Tensor"):
        x + x


def test_a_kernel_that_fails_in_backward():
    x = torch.ones(4, device="npu", requires_grad=True)
    loss = torch.tanh(x).sum()
    with (
        faults.failing_kernel("aten::tanh_backward"),
        pytest.raises(RuntimeError, match="tanh_backward fails on purpose"),
    ):
        loss.backward()


def test_the_operator_that_the_device_computes_itself_fails_too():
    need_torch(2, 9)
    tokens, counts = torch.randn(4, 8).half().npu(), torch.tensor([[1, 3]]).npu()
    expected = moe_graph.moe_re_routing(tokens, counts).permute_tokens.cpu()
    with faults.failing_kernel("npu::npu_moe_re_routing", from_call=2):
        assert torch.equal(torch.ops.npu.npu_moe_re_routing(tokens, counts)[0].cpu(), expected)
        with pytest.raises(RuntimeError, match="npu_moe_re_routing fails on purpose"):
            torch.ops.npu.npu_moe_re_routing(tokens, counts)
    assert torch.equal(torch.ops.npu.npu_moe_re_routing(tokens, counts)[0].cpu(), expected)


@pytest.mark.parametrize("name", ["aten::no_such", "exp", "aten::exp.no_such", ""])
def test_an_unknown_operator_is_said(name):
    with pytest.raises(ValueError, match="operator must be the name of one"), faults.failing_kernel(name):
        pass


WAITS = {
    "device": lambda x: torch.npu.synchronize(),
    "stream": lambda x: torch.npu.current_stream().synchronize(),
    "event": lambda x: recorded().synchronize(),
    "copy": lambda x: x.cpu(),
    "item": lambda x: x[0].item(),
    "condition": lambda x: bool(x.sum() > 1),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
}


def recorded():
    event = torch.npu.Event()
    event.record()
    return event


@pytest.mark.parametrize("wait", WAITS)
def test_asynchronous_error_surfaces_where_the_host_waits(wait):
    x = torch.ones(4, device="npu")
    with faults.asynchronous_error("aten::exp"):
        WAITS[wait](x)  # before the crash
        y = x.exp()  # the launch returns
        y = y * 2
        for _ in range(2):  # it stays
            with pytest.raises(RuntimeError, match=r"507015[\s\S]*aten::exp has crashed on purpose"):
                WAITS[wait](y)
    WAITS[wait](x)
    after()


def test_asynchronous_error_of_something_before():
    with faults.asynchronous_error():
        x = torch.ones(4, device="npu") + 1
        with pytest.raises(RuntimeError, match="507015"):
            x.sum().item()
    after()


def test_slow_stream():
    x = torch.ones(4, device="npu")
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    with faults.slow_stream(0.2):
        began = time.monotonic()
        start.record()
        y = x + 1
        end.record()
        assert not end.query() and not torch.npu.current_stream().query()
        assert time.monotonic() - began < 0.15
        torch.npu.synchronize()
        assert time.monotonic() - began >= 0.2
        assert end.query() and torch.npu.current_stream().query()
    assert start.elapsed_time(end) == pytest.approx(200, abs=60)
    assert y.cpu().tolist() == [2] * 4


def test_one_slow_stream_and_who_waits_for_it():
    slow, other = torch.npu.Stream(), torch.npu.Stream()
    x = torch.ones(4, device="npu")
    with faults.slow_stream(0.2, slow):
        with torch.npu.stream(slow):
            x + 1
        with torch.npu.stream(other):
            x + 1
            assert other.query() and not slow.query()
            other.wait_stream(slow)
            assert not other.query()
            began = time.monotonic()
            assert (x + 1).sum().item() == 8
            assert 0.1 < time.monotonic() - began < 2
    with pytest.raises(ValueError, match="seconds must be 0 or more, got -1"), faults.slow_stream(-1):
        pass


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", "import moe_graph.simulator, torch\n" + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_faults_by_environment():
    code = (
        "x = torch.ones(4, device='npu')\n"
        "x.exp()\n"
        "try: x.exp(); print('went on')\n"
        "except RuntimeError as error: print('fails' in str(error))\n"
        "x.log()\n"
        "try: torch.npu.synchronize(); print('went on')\n"
        "except RuntimeError as error: print('507015' in str(error))\n"
    )
    switched = {"MOE_GRAPH_SIM_FAULT_KERNEL": "aten::exp@2", "MOE_GRAPH_SIM_FAULT_ASYNC": "aten::log"}
    done = run(code, **switched)
    assert done.stdout.split() == ["True", "True"], done.stderr[-2000:]
    other_rank = run(code, **switched, MOE_GRAPH_SIM_FAULT_RANK="1")
    assert other_rank.stdout.split() == ["went", "on", "went", "on"], other_rank.stderr[-2000:]
    assert run(code, **switched, MOE_GRAPH_SIM_FAULT_RANK="1", RANK="1").stdout.split() == ["True", "True"]


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("MOE_GRAPH_SIM_FAULT_KERNEL", "aten::no_such", "operator must be"),
        ("MOE_GRAPH_SIM_FAULT_KERNEL", "aten::exp@x", "invalid literal"),
        ("MOE_GRAPH_SIM_FAULT_SLOW", "-1", "seconds must be 0 or more"),
        ("MOE_GRAPH_SIM_FAULT_OTHER", "1", "is no fault"),
    ],
)
def test_a_wrong_fault_in_the_environment_is_said(monkeypatch, name, value, text):
    monkeypatch.setenv(name, value)
    with pytest.raises(SimulatorError, match=text):
        faults.from_environment()
