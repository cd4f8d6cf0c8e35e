"""The device as torch_npu's own tests know it: what it sees, what it converts, what waits, what is refused."""

from __future__ import annotations

import ctypes
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
print(torch.npu.device_count())
os.environ["ASCEND_RT_VISIBLE_DEVICES"] = "0,2"  # after the import, before the first use
print(torch.npu.device_count())
library = ctypes.CDLL(None)
count = ctypes.c_uint32()
seen = []
for visible in ("0,2", "1", "7", "0,7,0", "2,0", "0,0,1", "0, 1", "0,", "npu0", ""):
    os.environ["ASCEND_RT_VISIBLE_DEVICES"] = visible
    library.aclrtGetDeviceCount(ctypes.byref(count))
    seen.append(count.value)
    assert count.value == torch.npu.device_count(), visible
print(seen)
os.environ["ASCEND_RT_VISIBLE_DEVICES"] = "1"
stream = ctypes.c_void_p()
print(torch_npu.npu.npurt().npuStreamCreate(ctypes.addressof(stream)))  # no device is set yet
"""
    assert run(code, "--devices", "3").split("\n") == [
        "False",
        "3",
        "2",
        "[2, 1, 0, 1, 0, 0, 1, 1, 0, 0]",
        "0",
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
    with pytest.raises(RuntimeError, match="same device. Expected NPU tensor, please check whether the input tensor"):
        torch.add(torch.zeros(5), x)
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


def test_what_this_machine_cannot_hold_is_out_of_memory():
    """An error, before the system ends the process: by an operator, and by a copy."""
    amount = 60 << 30
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > amount // 2:
        pytest.skip("this machine can hold what a device can")
    large = torch.empty(amount, dtype=torch.int8, device="npu")
    with pytest.raises(torch.OutOfMemoryError, match=r"NPU out of memory. Tried to allocate 60.00 GiB.*this machine"):
        large.fill_(1)
    large[-(300 << 20) :].fill_(1)
    assert large[-1].item() == 1
    library = ctypes.CDLL(None)
    sizes = [ctypes.c_size_t(amount)] * 2
    assert library.aclrtMemset(ctypes.c_void_p(large.data_ptr()), sizes[0], 0, sizes[1]) == 207001
    del large
    torch.npu.empty_cache()


def test_events_between_processes_are_refused_at_once():
    with pytest.raises(RuntimeError, match="IPC Event is not support|events between processes are not modelled"):
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


def test_host_functions_run_in_stream_order_and_at_each_replay():
    stream, beside = torch.npu.Stream(), torch.npu.Stream()
    x, seen = torch.ones(2).npu(), torch.zeros(2).npu()

    def look(operands):
        with torch.npu.stream(beside):
            seen.copy_(operands[0] * 2)

    torch_npu.npu._subscribe_report(stream)
    try:
        with torch.npu.stream(stream):
            torch_npu.npu._launch_host_func(stream, look, [x + 1])
            assert (seen + 1).tolist() == [5, 5]
            graph = torch.npu.NPUGraph()
            with torch.npu.graph(graph, stream=stream):
                torch_npu.npu._launch_host_func(torch.npu.current_stream(), look, [x * 3])
                after = seen + 1
        assert seen.tolist() == [4, 4]  # nothing has run while it was captured
        for value in (1.0, 2.0):
            x.fill_(value)
            graph.replay()
            torch.npu.synchronize()
            assert after.tolist() == [6 * value + 1] * 2
    finally:
        torch_npu.npu._unsubscribe_report(stream)


def test_a_tensor_larger_than_its_storage_reads_its_own_block_and_no_other():
    x = torch.arange(16.0).npu().view(2, 2, 2, 2)
    x.untyped_storage().resize_(16)
    copied = x.clone()
    assert copied.shape == x.shape and copied.flatten()[:4].tolist() == [0, 1, 2, 3]
    y = torch.zeros(1000).npu()
    y.untyped_storage().resize_(16)
    for use in (y.clone, lambda: y + 1, lambda: y.fill_(1.0), lambda: repr(y)):
        with pytest.raises(RuntimeError, match="needs a storage of 4000 bytes, its storage has 16"):
            use()
    y.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="its storage has 0"):
        y.sum()


def test_tensors_larger_than_their_storages_are_combined():
    """Laid side by side, each in the memory of its storage: what one writes beyond is the next one's, which comes after it."""
    tensors = [torch.arange(16.0).npu().view(4, 4), torch.arange(27.0).npu().view(3, 3, 3) + 100]
    combined = torch.zeros(8).npu()
    for place, tensor in enumerate(tensors):
        tensor.untyped_storage().resize_(16)
        copied = tensor.clone()
        torch_npu.npu_change_data_ptr(tensor, combined, 4 * place)
        tensor.copy_(copied)
    assert combined.tolist() == [0, 1, 2, 3, 100, 101, 102, 103]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("dense", [(), (2,)], ids=str)
def test_a_sparse_tensor_is_coalesced_as_on_the_host(dtype, dense):
    indices = torch.tensor([[0, 1, 1, 0, 1], [2, 0, 0, 1, 0], [1, 3, 3, 0, 2]])
    values = torch.arange(5 * max(1, sum(dense))).view(5, *dense).to(dtype)
    shape = (2, 3, 4, *dense)
    on_host = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False).coalesce()
    on_device = torch.sparse_coo_tensor(indices.npu(), values.npu(), shape, check_invariants=False).coalesce()
    assert on_device.is_coalesced() and on_device.device.type == "npu"
    assert torch.equal(on_device.indices().cpu(), on_host.indices())
    assert torch.equal(on_device.values().cpu(), on_host.values())


def test_data_that_may_be_spoilt_is_refused_until_it_is_filled():
    recovery = torch_npu.npu._recovery
    a, b = torch.ones(3).npu(), torch.ones(3).npu()
    recovery.mark_all_npu_tensor_unsafe(0)
    assert not recovery.check_npu_tensor_is_safe(a)
    assert (a + b).tolist() == [2, 2, 2]  # the marks are looked at where the flag is on
    recovery.set_npu_tensor_unsafe_check_flag(True)
    try:
        for use in (
            lambda: a + b,
            lambda: torch.add(torch.ones(3).npu(), 1, out=a),
            lambda: a.clone(),
            lambda: b.copy_(a),
        ):
            with pytest.raises(RuntimeError, match="There is unsafe data in the input tensor"):
                use()
        b.copy_(torch.full((3,), 2.0))
        assert recovery.check_npu_tensor_is_safe(b) and (b + b).tolist() == [4, 4, 4]
    finally:
        recovery.set_npu_tensor_unsafe_check_flag(False)
    assert (a + b).tolist() == [3, 3, 3]


def test_a_block_is_the_same_memory_by_its_key():
    """What torch.multiprocessing's queues do, in one process: `test_tensors_go_through_queues` has two."""
    library = ctypes.CDLL(None)
    start, key, mapped = ctypes.c_void_p(), ctypes.create_string_buffer(65), ctypes.c_void_p()
    size = 2 << 20
    assert library.aclrtMalloc(ctypes.byref(start), ctypes.c_size_t(size), 0) == 0
    ctypes.memset(start.value + 5000, 7, 3)
    assert (
        library.aclrtIpcMemGetExportKey(start, ctypes.c_size_t(size), key, ctypes.c_size_t(65), ctypes.c_uint64(1)) == 0
    )
    assert library.aclrtIpcMemImportByKey(ctypes.byref(mapped), key, ctypes.c_uint64(1)) == 0
    assert mapped.value != start.value
    assert ctypes.string_at(mapped.value + 4999, 5) == b"\0\7\7\7\0"
    ctypes.memset(mapped.value, 9, 2)
    assert ctypes.string_at(start.value, 3) == b"\11\11\0"
    assert [library.aclrtIpcMemClose(key) for _ in range(3)] == [0, 0, 107000]  # of both sides, and nobody's
    assert library.aclrtIpcMemImportByKey(ctypes.byref(mapped), key, ctypes.c_uint64(1)) == 107000
    assert library.aclrtFree(start) == 0


@pytest.mark.slow
def test_tensors_go_through_queues(tmp_path):
    script = tmp_path / "queues.py"
    script.write_text("""
import torch
import torch.multiprocessing as mp
import torch_npu

def child(queue, back):
    x, wide = queue.get()
    x.mul_(wide.sum() / wide.numel() + 1)
    back.put(str(x.device))
    queue.get()

if __name__ == "__main__":
    context = mp.get_context("spawn")
    queue, back = context.Queue(), context.Queue()
    process = context.Process(target=child, args=(queue, back))
    process.start()
    x, neighbour = torch.arange(4.0).npu(), torch.full((3,), 7.0).npu()
    wide = torch.ones(3 << 20, dtype=torch.uint8).npu()
    queue.put((x, wide))
    print(back.get(timeout=200), x.tolist(), neighbour.tolist())
    queue.put(None)
    process.join()
    print(process.exitcode)
""")
    command = [sys.executable, "-W", "ignore", "-m", "moe_graph", "run", "--quiet", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[:2] == ["npu:0 [0.0, 2.0, 4.0, 6.0] [7.0, 7.0, 7.0]", "0"], done.stderr[-2000:]


def test_devices_of_one_process_share_a_batch_and_keep_sparse_results():
    """torch.nn.DataParallel's step is the one of the module alone on the CPU. What is sparse stays on its device, whichever is current."""
    code = """
import copy
import torch, torch_npu
import torch.nn.parallel.comm as comm
torch.manual_seed(0)
alone = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5).eval(), torch.nn.Linear(5, 2))
module = torch.nn.DataParallel(copy.deepcopy(alone).npu(), device_ids=[0, 1])
x = torch.randn(5, 3)
module(x.npu()).square().sum().backward()
alone(x).square().sum().backward()
for ours, theirs in zip(module.parameters(), alone.parameters()):
    torch.testing.assert_close(ours.grad.cpu(), theirs.grad)
for dtype in (torch.int8, torch.bfloat16, torch.float32, torch.int64):
    sent = torch.arange(5, device="npu:1").to(dtype)
    for device, got in zip((1, 0), comm.broadcast(sent, devices=[1, 0])):
        assert got.device.index == device and torch.equal(got.cpu(), sent.cpu())
assert torch.npu.current_device() == 0
for index in (1, 0, 1, 1):
    sparse = torch.eye(2, device=f"npu:{index}").to_sparse()
    assert sparse.device.index == sparse._values().device.index == index and sparse._nnz() == 2
print("equal")
"""
    assert run(code, "--devices", "2").endswith("equal")


def test_the_version_of_cann_can_be_set(monkeypatch):
    library = ctypes.CDLL(None)
    found = ctypes.create_string_buffer(520)
    seen = []
    for version in ("", "8.5.0", "8.3.RC1", "9.0.0.beta2", "8.5", "new"):
        set_in_process = monkeypatch.setenv if version else monkeypatch.delenv
        set_in_process("MOE_GRAPH_SIM_CANN", *([version] if version else [False]))
        seen.append(found.value.decode() if library.aclsysGetCANNVersion(0, found) == 0 else "refused")
    assert seen == ["9.2.0", "8.5.0", "8.3.RC1", "9.0.0.beta2", "refused", "refused"]


def test_a_device_that_is_not_there_is_an_error_that_says_how_to_have_it():
    """In the error itself, so that workers of torchrun have it, too."""
    with pytest.raises(RuntimeError, match=r"107001[\s\S]*device 63 does not exist[\s\S]*moe-graph run --devices N"):
        torch.npu.set_device(63)
