"""Registration inside the real torch_npu, each case in a process of its own, as on a machine with CANN.

The libraries of the simulated device stand on LD_LIBRARY_PATH there, so that torch_npu loads with no help of this package. Only torchair's
extension module needs a stand-in, which the script puts in place before anything else.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from moe_graph.foundation import compat
from moe_graph.simulator.runtime import build

pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None and compat.TORCH >= (2, 11),
    reason="torch_npu does not load beside torch's CUDA build from 2.11 on, but by the simulated device's help",
)

PRELUDE = """
import sys, types, warnings
core = types.ModuleType("torchair.core._torchair")
core.TorchNpuGraphBase = type("TorchNpuGraphBase", (), {"__init__": lambda self, name: None})
class TorchDataType:
    UINT8 = INT8 = INT16 = INT32 = INT64 = FLOAT16 = FLOAT32 = FLOAT64 = COMPLEX64 = COMPLEX128 = BOOL = BF16 = 0
    UINT16 = UINT32 = UINT64 = 0
core.TorchDataType = TorchDataType
core.InitializeGraphEngine = lambda options: None
core.FinalizeGraphEngine = lambda: None
sys.modules["torchair.core._torchair"] = core
"""
PROVIDERS = """
status = moe_graph.status()
for part, provider in {
    "schema": "torch_npu", "fake": "moe_graph", "any-device kernel": "moe_graph", "NPU kernel": "torch_npu",
    "autograd": "moe_graph", "converter": "moe_graph",
}.items():
    assert status.provider(part) == provider, f"{part}: {status.provider(part)}"
tokens, counts = torch.arange(20.0).view(10, 2), torch.tensor([[2, 0, 3], [1, 4, 0]])
index = torch_npu.npu_moe_re_routing(tokens, counts)[2]
assert index.tolist() == [0, 1, 5, 6, 7, 8, 9, 2, 3, 4], index
"""


def python(code, **environment):
    """Run code in a fresh Python that finds the simulated libraries as it would find CANN's."""
    libraries = str(build.ensure_built()[0].parent)
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "LD_LIBRARY_PATH": libraries, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **environment},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "verrid" not in result.stderr and "moe_graph" not in result.stderr, result.stderr
    return result.stdout


# torchair lies inside torch_npu: it cannot come first.
ORDERS = [
    o
    for o in itertools.permutations(["torch", "torch_npu", "moe_graph", "torchair"])
    if o.index("torchair") > o.index("torch_npu")
]


@pytest.mark.parametrize("orders", [ORDERS[::4], pytest.param(ORDERS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_import_order(orders):
    def one(order):
        # torchair is a lazy proxy until first used: a name of it makes it real.
        lines = [f"import {name}" + ("; torchair.CompilerConfig" if name == "torchair" else "") for name in order]
        try:
            python("\n".join(lines) + PROVIDERS)
        except AssertionError as error:
            return f"{order}: {error}"

    with ThreadPoolExecutor(2) as pool:
        failures = [failure for failure in pool.map(one, orders) if failure]
    assert len(orders) in (3, 12) and not failures, "\n".join(failures)


@pytest.mark.parametrize("first", ["torch", "moe_graph"])
def test_with_autoload(first):
    python(
        f"import {first}\nimport torch, torch_npu, moe_graph, torchair\ntorchair.CompilerConfig" + PROVIDERS,
        TORCH_DEVICE_BACKEND_AUTOLOAD="1",
    )


def test_lazy_proxy_is_not_woken():
    """moe_graph after torch_npu leaves the proxy of torchair asleep; its first use brings our converter."""
    python("""
import torch, torch_npu, moe_graph
assert type(sys.modules["torchair"]).__name__ == "_LazyTorchair"
assert "torchair._ge_concrete_graph" not in sys.modules
assert moe_graph.status().provider("converter") == "nobody"
import torchair
torchair.get_npu_backend
assert moe_graph.status().provider("converter") == "moe_graph"
from torchair._ge_concrete_graph.ge_converter import custom  # torchair's own converters, imported late
import torchair._ge_concrete_graph.ge_converter.custom.npu_moe_re_routing
assert moe_graph.status().provider("converter") == "moe_graph"
""")


def test_unregistering_leaves_torch_npu_as_it_was():
    python(
        """
import torch, torch_npu, torchair
torchair.CompilerConfig
from torchair._ge_concrete_graph.ge_converter import custom
names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("npu::"))
def overload(name):
    name, _, suffix = name.partition("::")[2].partition(".")
    return getattr(getattr(torch.ops.npu, name), suffix or "default")
def state():
    dumps = {name: torch._C._dispatch_dump(name).splitlines() for name in names}
    kernels = {name: [line for line in dump if "registered at" in line] for name, dump in dumps.items()}
    converters = {name: getattr(overload(name), "_ge_converter", None) for name in names}
    records = {key for key in torch.library._impls if key.startswith("npu/")}
    return kernels, converters, records, list(sys.meta_path), [str(overload(name)._schema) for name in names]
before = state()
import moe_graph
moe_graph.register()
ours = state()
name = "npu::npu_moe_re_routing"
assert ours[0][name] != before[0][name] and ours[1][name] is not before[1][name]
assert sum(ours[0][name] != before[0][name] for name in names) == len(moe_graph.registration.register.OPERATORS)
moe_graph.unregister()
for now, then in zip(state(), before):
    assert now == then, (now, then)
try:
    torch_npu.npu_moe_re_routing(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.int32))
except NotImplementedError:
    pass
else:
    raise AssertionError("the CPU kernel is still there")
moe_graph.register()
moe_graph.register()
"""
        + PROVIDERS
    )


def test_gradient_on_the_npu_goes_through_its_kernel():
    """In this process: the C++ adapter is called for forward and backward, with the promised attributes."""
    import torch
    import torch_npu

    from moe_graph import simulator

    counts = torch.tensor([[2, 0, 3], [1, 4, 0]], dtype=torch.int32)
    tokens = torch.randn(10, 4).half().npu().requires_grad_()
    before = simulator.kernel_calls()[-1:]
    number = before[0].number if before else 0
    outputs = torch_npu.npu_moe_re_routing(tokens, counts.npu(), expert_token_num_type=1, idx_type=0)
    outputs[0].backward(torch.arange(40.0).view(10, 4).half().npu())
    torch.npu.synchronize()
    calls = [call for call in simulator.kernel_calls() if call.number > number]
    assert [(call.expert_token_num_type, call.idx_type) for call in calls] == [(1, 0), (1, 0)]
    assert tokens.grad.cpu()[outputs[2].cpu().long()].flatten().tolist() == list(range(40))
