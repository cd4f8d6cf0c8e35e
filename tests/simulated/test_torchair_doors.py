"""torchair's other doors on the simulated device: each works, or fails with one clear line."""

from __future__ import annotations

import copy
import ctypes.util
import os
import re
import subprocess
import sys

import pytest
import torch
import torch_npu
import torchair
from torchair.configs.compiler_config import CompilerConfig

import cases
import moe_graph
from moe_graph.engine import load_model
from moe_graph.simulator.graph_mode.torchair_core import NeedsCann

COUNTS = cases.make_counts(2, 3, 10)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8, dtype=torch.bfloat16)

    def forward(self, x, counts):
        return self.linear(moe_graph.moe_re_routing(x, counts).permute_tokens).relu()


@pytest.fixture
def block():
    torch._dynamo.reset()
    torch.manual_seed(0)
    block, x = Block().requires_grad_(False), torch.randn(10, 8).bfloat16()
    return block, x, block(x, COUNTS)


def configured(settings):
    config = CompilerConfig()
    for name, value in settings.items():
        *path, last = name.split(".")
        target = config
        for part in path:
            target = getattr(target, part)
        setattr(target, last, value)
    return config


def compiled(function, config=None, **arguments):
    backend = torchair.get_npu_backend(compiler_config=config or CompilerConfig())
    return torch.compile(function, backend=backend, fullgraph=True, **arguments)


def close(got, expected):
    torch.testing.assert_close(got.cpu(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    "setting",
    [
        {"experimental_config.frozen_parameter": True},
        {"experimental_config.enable_view_optimize": False},
        {"experimental_config.keep_inference_input_mutations": False},
        {"experimental_config.enable_ref_data": True},
        {"experimental_config.tiling_schedule_optimize": True},
        {"experimental_config.memory_efficiency": True},
        {"experimental_config.remove_noop_ops": False},
        {"experimental_config.pattern_fusion_pass": False},
        {"experimental_config.topology_sorting_strategy": "StableRDFS"},
        {"ge_config.oo_level": "O3"},
        {"debug.run_eagerly": True},
    ],
    ids=lambda setting: next(iter(setting)),
)
@pytest.mark.filterwarnings("ignore:When enable frozen_parameter")
def test_options_that_work(block, setting, dynamic):
    model, x, expected = block
    close(compiled(copy.deepcopy(model).npu(), configured(setting), dynamic=dynamic)(x.npu(), COUNTS.npu()), expected)


def test_run_eagerly_lowers_nothing(block, lowered):
    model, x, expected = block
    close(
        compiled(copy.deepcopy(model).npu(), configured({"debug.run_eagerly": True}))(x.npu(), COUNTS.npu()), expected
    )
    assert not lowered


@pytest.mark.parametrize("keep", [True, False])
def test_input_mutations(keep, lowered):
    def step(cache, x):
        cache.mul_(2)
        cache[1:3].add_(x)
        return cache.sum()

    cache, x = torch.arange(12.0).view(4, 3), torch.ones(2, 3)
    on_device = cache.npu()
    config = configured({"experimental_config.keep_inference_input_mutations": keep})
    total = compiled(step, config)(on_device, x.npu())
    assert torch.equal(total.cpu(), step(cache, x)) and torch.equal(on_device.cpu(), cache)
    assert len(lowered) == 1


def test_view_optimize_reads_strided_inputs(lowered):
    x = torch.arange(24.0).view(4, 6)
    function = lambda t: (t + 1).relu()  # noqa: E731
    for view in (lambda t: t.t(), lambda t: t[1:, ::2], lambda t: t[:, 3]):
        assert torch.equal(compiled(function)(view(x.npu())).cpu(), function(view(x)))
        torch._dynamo.reset()


def test_gears(lowered):
    function = lambda t: (t * 2).relu()  # noqa: E731
    run = compiled(function, dynamic=True)
    for count in (5, 10, 20):
        x = torch.randn(count, 8)
        on_device = x.npu()
        torchair.inference.set_dim_gears(on_device, {0: [5, 10, 20]})
        assert torch.equal(run(on_device).cpu(), function(x))
    off_gear = torch.randn(7, 8).npu()
    torchair.inference.set_dim_gears(off_gear, {0: [5, 10, 20]})
    with pytest.raises(Exception, match=re.escape("is not within the range [5, 10, 20]")):
        run(off_gear)


class Cached(torch.nn.Module):
    def __init__(self, model, folder, dynamic):
        super().__init__()
        self.model = model
        self.cached = torchair.inference.cache_compile(
            self.run, config=CompilerConfig(), cache_dir=str(folder), dynamic=dynamic
        )

    def run(self, x, counts):
        return self.model(x, counts)

    def forward(self, x, counts):
        return self.cached(x, counts)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_cache_compile(block, tmp_path, dynamic, monkeypatch):
    model, x, expected = block
    close(Cached(copy.deepcopy(model).npu(), tmp_path, dynamic)(x.npu(), COUNTS.npu()), expected)
    assert list(tmp_path.rglob("compiled_module"))
    torch._dynamo.reset()
    monkeypatch.setattr(torch._dynamo, "optimize", None)  # a warm start compiles nothing
    monkeypatch.setattr(torch, "compile", None)
    close(Cached(copy.deepcopy(model).npu(), tmp_path, dynamic)(x.npu(), COUNTS.npu()), expected)


def test_dynamo_export_writes_all_but_the_air_file(block, tmp_path):
    model, x, expected = block
    with pytest.raises(NeedsCann, match="moe.air of dynamo_export .written: .* needs CANN's graph engine"):
        torchair.dynamo_export(
            x.npu(), COUNTS.npu(), model=copy.deepcopy(model).npu(), export_path=str(tmp_path), export_name="moe"
        )
    assert list(tmp_path.rglob("dynamo.pbtxt"))
    (written,) = tmp_path.rglob("moe.modeldef")
    program = load_model(written.read_bytes())  # the weights are constants now: it runs by itself
    assert program.node_types.count("MoeReRouting") == 1
    close(program.run([x, COUNTS])[0], expected)


@pytest.mark.parametrize(
    "scope",
    [
        lambda: torchair.scope.npu_stream_switch("1", 3),
        lambda: torchair.scope.limit_core_num(4, 4),
        lambda: torchair.scope.super_kernel("kernel"),
        lambda: torchair.scope.op_never_timeout(True),
        lambda: torchair.scope.data_dump(),
    ],
    ids=["npu_stream_switch", "limit_core_num", "super_kernel", "op_never_timeout", "data_dump"],
)
def test_scopes(block, scope, lowered):
    _, x, _ = block

    def function(x, counts):
        with scope():
            return moe_graph.moe_re_routing(x, counts).permute_tokens * 2

    assert torch.equal(compiled(function)(x.npu(), COUNTS.npu()).cpu(), function(x, COUNTS))
    assert lowered[0].node_types.count("MoeReRouting") == 1


def test_wait_tensor(lowered):
    def function(x, y):
        return torchair.scope.npu_wait_tensor(x * 2, y) + 1

    x, y = torch.randn(3, 4), torch.randn(2)
    assert torch.equal(compiled(function)(x.npu(), y.npu()).cpu(), x * 2 + 1)


def test_npu_print_prints_as_in_eager(capsys):
    x = torch.tensor([[-1.0, 0.5, 1e9], [1 / 3, float("inf"), float("nan")]])
    other = (
        torch.arange(70).reshape(7, 10),
        torch.tensor([True, False]),
        torch.tensor(2.5).bfloat16(),
        torch.zeros(0, 3),
    )

    def function(x, many, flags, scalar, empty):
        torchair.ops.npu_print("x =", x)
        torchair.ops.npu_print(many, "and", flags, scalar, "{}", summarize_size=2)
        torchair.ops.npu_print(x + 1, "all", many, empty, summarize_size=-1)
        torchair.ops.npu_print(flags, tensor_detail=True)
        return x + 1

    function(x, *other)
    eager = capsys.readouterr().out
    assert eager.count("\n") > 12 and "[[0 1 ... 8 9]\n [10 11 ... 18 19]\n ..." in eager
    compiled(function)(x.npu(), *(value.npu() for value in other))
    assert capsys.readouterr().err.endswith(eager)


def test_npu_print_keeps_its_order_with_writes(capsys):
    def function(v):
        torchair.ops.npu_print("before", v)
        v.add_(1)
        torchair.ops.npu_print("after", v)
        return v * 1

    compiled(function)(torch.zeros(2).npu())
    assert capsys.readouterr().err.endswith("before [0 0]\nafter [1 1]\n")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_tensors_over_addresses_of_the_device(dtype):
    """torchair.llm_datadist.create_npu_tensors: the caches that another program part has allocated, as tensors."""
    first, second = (torch.arange(at, at + 6).to(dtype).npu() for at in (0, 1))
    tensors = torchair.llm_datadist.create_npu_tensors((2, 3), dtype, [first.data_ptr(), second.data_ptr()])
    for tensor, memory in zip(tensors, (first, second), strict=True):
        assert tensor.device == memory.device and tensor.dtype == dtype
        assert torch_npu.get_npu_format(tensor) == 2  # ND: torch's own storages have no place for it
        assert torch.equal(tensor.cpu(), memory.cpu().view(2, 3))
    tensors[0].zero_()
    assert not first.any() and second.any()
    with pytest.raises(RuntimeError, match="as_torch_tensors.. returned 1"):
        torchair.llm_datadist.create_npu_tensors((2, 3), torch.uint16, [first.data_ptr()])


_MANY_TENSORS = """
import torch, torch_npu, torchair
memory = torch.arange(6.0).npu()
for _ in range(50):
    tensors = torchair.llm_datadist.create_npu_tensors((2, 3), torch.float32, [memory.data_ptr()] * 2)
    tensors[0].add_(1)
print(memory.tolist())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    ctypes.util.find_library("c_malloc_debug") is None, reason="glibc's checks of the heap are not here"
)
def test_tensors_over_addresses_leave_the_heap_whole(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_MANY_TENSORS)
    checks = {"LD_PRELOAD": "libc_malloc_debug.so.0", "GLIBC_TUNABLES": "glibc.malloc.check=3"}
    command = [sys.executable, "-m", "moe_graph", "run", "-q", str(script)]
    done = subprocess.run(command, env={**os.environ, **checks}, capture_output=True, text=True, timeout=600)
    assert done.stdout == "[50.0, 51.0, 52.0, 53.0, 54.0, 55.0]\n", done.stderr[-2000:]


def test_which_aclnn_functions_there_are():
    from torchair.core import _torchair

    assert _torchair.CheckAclnnAvaliable("aclnnMoeReRouting") and not _torchair.CheckAclnnAvaliable("aclnnNoSuch")
