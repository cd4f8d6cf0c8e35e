"""The device as torch_npu's own tests know it: what it sees, what it converts, what waits, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch
import torch_npu


def run(code: str, *options: str, **environment: str) -> str:
    """What a script prints that `moe_graph run` starts in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "moe_graph", "run", *options, "-"]
    done = subprocess.run(
        command, input=code, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_fresh_process_sees_visible_devices_and_is_not_initialised():
    """Not by the banner of `run` either: allocator settings are read at the first use, and a fork is allowed before it."""
    code = """
import ctypes, os
import torch, torch_npu
print(torch.npu.is_initialized())
os.environ["ASCEND_RT_VISIBLE_DEVICES"] = "2,0"  # after the import, before the first use
print(torch.npu.device_count())
stream = ctypes.c_void_p()
print(torch_npu.npu.npurt().npuStreamCreate(ctypes.addressof(stream)))  # no device is set yet
library = ctypes.CDLL(None)
count = ctypes.c_uint32()
seen = []
for visible in ("2,0", "1", "7", "0,0,1", ""):
    os.environ["ASCEND_RT_VISIBLE_DEVICES"] = visible
    library.aclrtGetDeviceCount(ctypes.byref(count))
    seen.append(count.value)
print(seen)
"""
    assert run(code, "--devices", "3").split("\n") == [
        "False",
        "2",
        "0",
        "[2, 1, 0, 1, 0]",
    ]


def test_float64_is_asked_for_and_float32_comes():
    x = torch.ones(2).npu()
    assert x.double().dtype == x.to(torch.float64).dtype == torch.float32
    assert torch.ones(2, dtype=torch.float64).npu().dtype == torch.float64


def test_a_copy_that_does_not_block_is_pinned():
    copied = torch.arange(8).npu().to("cpu", non_blocking=True)
    assert copied.is_pinned() and copied.tolist() == list(range(8))
    assert not torch.arange(8).npu().cpu().is_pinned()


@pytest.mark.parametrize(
    "wait",
    [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x.nonzero(), lambda x: torch.ones(3).npu()],
    ids=["item", "cpu", "nonzero", "npu"],
)
def test_sync_debug_mode_sees_what_waits(wait):
    x = torch.arange(4.0).npu()
    torch.npu.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            wait(x)
        assert (x + 1).shape == (4,), "what does not wait goes on"
    finally:
        torch.npu.set_sync_debug_mode("default")
    wait(x)


def test_cpu_tensors_are_refused_where_a_device_refuses_them():
    x, index = torch.zeros(5).npu(), torch.tensor([0, 1])
    x[index] = torch.tensor([1.0, 2.0]).npu()  # indices may be the host's
    x[index] = torch.tensor(3.0)  # and numbers
    assert x.cpu().tolist() == [3, 3, 0, 0, 0]
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.index_put_(x, (index,), torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.nonzero(x, out=torch.empty([], dtype=torch.long))


def test_swapped_memory_is_whole_pages():
    kept = []
    for count in range(1, 7):
        made = torch_npu.empty_with_swapped_memory([256 * count], dtype=torch.float32, device="npu:0")
        made.fill_(count)
        kept.append(made)
        torch_npu.empty_with_swapped_memory([300 * count], dtype=torch.float32, device="npu:0").fill_(-1)
        torch.npu.empty_cache()
    assert [tensor.cpu().unique().tolist() for tensor in kept] == [[count] for count in range(1, 7)]


def test_memory_that_is_only_reserved_costs_nothing():
    large = torch.empty(40 << 30, dtype=torch.int8, device="npu")
    large[-1] = 7
    assert large[-1].item() == 7
    del large
    torch.npu.empty_cache()


def test_events_between_processes_are_refused_at_once():
    with pytest.raises(RuntimeError, match="events between processes are not modelled"):
        torch.npu.Event(enable_timing=False, interprocess=True)


def test_events_have_a_time_and_a_stream_sleeps():
    event = torch.npu.Event(enable_timing=True)
    event.record()
    before = event.recorded_time()
    start = time.monotonic()
    torch.npu._sleep(50_000_000)
    assert not torch.npu.current_stream().query()
    event.record()
    torch.npu.synchronize()
    assert time.monotonic() - start >= 0.05
    assert event.recorded_time() - before >= 50_000  # microseconds
