"""torch_npu's device interface on the simulated device: what a script does before and around its operators."""

import threading

import numpy as np
import pytest
import torch
import torch_npu  # noqa: F401

from moe_graph import simulator
from moe_graph.foundation import compat
from moe_graph.simulator import device
from versions import need_torch


def test_the_real_torch_npu_finds_the_device():
    assert simulator.is_active() and simulator.soc() == "A2"
    assert torch.npu.is_available()
    assert torch.npu.device_count() == 1
    assert torch.npu.get_device_name() == "Ascend910B1"
    assert simulator.start() is True  # a second start does nothing


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int64, torch.bool, torch.complex64]
)
def test_tensors_travel_both_ways(dtype):
    there = torch.arange(-6, 6).to(dtype).view(3, 4)
    on_device = there.npu()
    assert on_device.device == torch.device("npu:0") and on_device.is_npu
    assert torch.equal(on_device.cpu(), there)
    assert torch.equal(on_device.t().cpu(), there.t())
    assert torch.equal(on_device[1:, ::2].cpu(), there[1:, ::2])
    assert torch.equal(on_device.to(torch.complex128).cpu(), there.to(torch.complex128))


def test_empty_tensors_travel():
    assert torch.empty(0, 4).npu().cpu().shape == (0, 4)


def test_memory_is_accounted():
    torch.npu.empty_cache()
    free, total = torch.npu.mem_get_info()
    before = torch.npu.memory_allocated()
    block = torch.empty(64 << 20, dtype=torch.uint8, device="npu")
    assert torch.npu.memory_allocated() - before >= 64 << 20
    assert free - torch.npu.mem_get_info()[0] >= 64 << 20
    assert torch.npu.get_device_properties(0).total_memory == total
    del block
    torch.npu.empty_cache()
    assert torch.npu.mem_get_info()[0] == free


def test_out_of_memory_is_said(monkeypatch):
    torch.npu.empty_cache()
    monkeypatch.setenv("MOE_GRAPH_SIM_MEMORY_GB", "0.25")
    # The class of its own came with torch 2.5; torch_npu raises it from 2.7 on.
    error = torch.OutOfMemoryError if compat.TORCH >= (2, 7) else RuntimeError
    with pytest.raises(error, match="out of memory"):
        torch.empty(1 << 30, dtype=torch.uint8, device="npu")
    assert torch.ones(4, device="npu").sum().item() == 4  # and the device goes on


def test_streams_and_events():
    stream = torch.npu.Stream()
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    with torch.npu.stream(stream):
        assert torch.npu.current_stream() == stream
        start.record()
        x = torch.ones(1000, 1000, device="npu") * 2
        end.record()
    stream.wait_event(end)
    torch.npu.current_stream().wait_stream(stream)
    end.synchronize()
    stream.synchronize()
    torch.npu.synchronize()
    assert start.query() and end.query() and stream.query()
    assert start.elapsed_time(end) > 0
    assert x.sum().item() == 2e6


def test_pinned_memory_is_known_as_such():
    pinned = torch.arange(8).pin_memory()
    assert pinned.is_pinned() and not torch.arange(8).is_pinned()
    assert torch.equal(pinned.npu(non_blocking=True).cpu(), torch.arange(8))


def test_operators_run_in_threads():
    results = {}

    def work(seed):
        torch.npu.set_device(0)
        x = torch.full((100,), float(seed), device="npu")
        results[seed] = (x * 2).sum().item()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {seed: 200.0 * seed for seed in range(8)}


def test_what_computes_and_is_not_modelled_names_itself():
    x = torch.ones(8, device="npu")
    with pytest.raises(RuntimeError, match=r"simulated device: aclnn\w+ is not modelled"):
        torch.ops.npu.attention_worker_scheduler(x)


def test_a_group_of_one_communicates():
    need_torch(2, 6)
    torch.distributed.init_process_group("hccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        tensor = torch.ones(2, device="npu")
        torch.distributed.all_reduce(tensor)
        assert tensor.tolist() == [1, 1]
    finally:
        torch.distributed.destroy_process_group()


def test_properties_of_the_device():
    properties = torch.npu.get_device_properties(0)
    assert properties.name == "Ascend910B1" and properties.total_memory == 64 << 30
    assert torch.npu.utilization() == 0
    assert torch_npu.npu_dtype_cast(torch.ones(2, device="npu"), torch.float16).dtype == torch.float16


def test_a_wheel_of_another_torch_is_told_apart():
    from moe_graph.simulator import SimulatorError
    from moe_graph.simulator.runtime import symbols

    symbols._check_torch({"aclrtMalloc", "_ZN2ge10GEFinalizeEv"})
    for name in (
        "_ZN3c106SymIntmlERKS0_",
        "_ZNK2at10TensorBase3dimEv",
        "_ZN5torch8autograd4NodeE",
        "_Z18THPVariable_Wrapv",
    ):
        with pytest.raises(SimulatorError, match="built for another torch than"):
            symbols._check_torch({name})


def test_a_message_does_not_outlive_its_error():
    x = torch.ones(8, device="npu")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="is not modelled"):
            torch.ops.npu.attention_worker_scheduler(x)
        assert np.allclose((x + 1).cpu().numpy(), 2)


def test_storage_roundtrip(tmp_path):
    x = torch.arange(10.0).npu()
    torch.save(x, tmp_path / "x.pt")
    assert torch.equal(torch.load(tmp_path / "x.pt", map_location="cpu"), x.cpu())
    assert torch.load(tmp_path / "x.pt", map_location="npu:0").is_npu


@pytest.mark.parametrize(
    "devices, said, threads", [("1", {}, 6), ("2", {}, 3), ("8", {}, 1), ("8", {"OMP_NUM_THREADS": "6"}, 6)]
)
def test_processes_of_several_devices_share_the_cores(monkeypatch, devices, said, threads):
    before = torch.get_num_threads()
    for name in device.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in {device.DEVICES_VARIABLE: devices, **said}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda process: set(range(6)))
    torch.set_num_threads(6)
    try:
        device._share_cores()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
