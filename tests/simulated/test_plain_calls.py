"""Operators of aten whose plain calls are served without Python: the same results, errors and observers as with it."""

import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch_npu

from moe_graph.operators.normalization.rms_norm import rms_norm
from moe_graph.simulator import faults, report
from moe_graph.simulator.eager import plain_calls

pytestmark = pytest.mark.skipif(plain_calls._library() is None, reason="no C++ compiler, or switched off")


def served(call):
    """(the result, how many calls were served without Python), after a first call, which Python serves."""
    call()
    before = plain_calls.count()
    return call(), plain_calls.count() - before


def npu(*shape, dtype=torch.float32):
    return torch.arange(1, 1 + torch.Size(shape).numel()).view(shape).to(dtype).npu()


PLAIN = {
    "new result": lambda x: x + x,
    "number": lambda x: x * 2.5,
    "number of the CPU": lambda x: x - torch.tensor(3.0),
    "several results": lambda x: torch.sort(x, dim=0, descending=True),
    "list": lambda x: torch.cat([x, x], 1),
    "list of indices": lambda x: x[:, npu(2, dtype=torch.int64)],
    "result on the host": lambda x: x.sum().item(),
    "shape of another": lambda x: torch.zeros_like(x),
    "strides": lambda x: x.t().exp(),
    "view of a part": lambda x: x[1:, ::2] + 1,
    "half type": lambda x: x.bfloat16() * 3,
    "product of half types": lambda x: x.half() @ x.t().half(),
    "nothing": lambda x: x[:0] + 1,
    "complex": lambda x: torch.complex(x, x).conj() * 2,
}


@pytest.mark.parametrize("form", PLAIN)
def test_results_are_the_cpus(form):
    result, calls = served(lambda: PLAIN[form](npu(4, 4)))
    with torch.inference_mode():
        inferred = PLAIN[form](npu(4, 4))
    with mock.patch.object(torch.Tensor, "npu", lambda tensor: tensor):
        expected = PLAIN[form](npu(4, 4))
    assert calls > 0
    torch.testing.assert_close(_host(result), expected, rtol=0, atol=0)
    torch.testing.assert_close(_host(inferred), expected, rtol=0, atol=0)
    if isinstance(result, torch.Tensor):
        assert result.device.type == "npu" and result.stride() == expected.stride()


def _host(value):
    return (
        [item.cpu() for item in value]
        if isinstance(value, tuple)
        else torch.as_tensor(value).cpu()
        if isinstance(value, torch.Tensor)
        else value
    )


def test_operators_of_torch_npu_are_their_functions():
    x, gamma = npu(2, 4, dtype=torch.bfloat16), npu(4, dtype=torch.bfloat16)
    (y, rstd), calls = served(lambda: torch_npu.npu_rms_norm(x, gamma))
    assert calls == 1
    expected = rms_norm(x.cpu(), gamma.cpu())
    assert torch.equal(y.cpu(), expected[0]) and torch.equal(rstd.cpu(), expected[1])
    with pytest.raises(RuntimeError, match="axis|dim"):
        torch_npu.npu_swiglu(npu(2, 3))


def test_what_is_changed_is_the_argument():
    x = npu(3)
    same, calls = served(lambda: x.add_(1))
    assert calls == 1 and same is x and x.tolist() == [3, 4, 5]
    out = torch.empty(8, device="npu")[:0]
    result, calls = served(lambda: torch.mul(x, 2, out=out.resize_(0)))
    assert result is out and out.tolist() == [6, 8, 10]
    part, _ = served(lambda: torch.add(x, 0, out=x))
    assert part is x


def test_a_result_in_the_memory_of_an_argument_is_an_alias():
    x = npu(2, 3)
    view, _ = served(lambda: torch.ops.aten.reshape(x, [3, 2]))
    view.add_(10)
    assert x.tolist() == [[11, 12, 13], [14, 15, 16]]


def test_what_torch_refuses_is_pythons_error():
    x, y = npu(2, 3), npu(4, 5)
    (x @ x.t(), x + x)
    with pytest.raises(RuntimeError, match="size of tensor"):
        x + y
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.cat([x, torch.ones(2, 3)])
    with pytest.raises(RuntimeError):
        x.sum(dim=7)  # an IndexError of torch's on the CPU, a RuntimeError on a device
    cpu = torch.tensor(1.0)
    assert cpu.copy_(x[0, 0]) is cpu and cpu.device.type == "cpu"


def test_sums_of_half_types_are_rounded_once():
    x = torch.full((4096,), 0.001, dtype=torch.float16)
    result, _ = served(lambda: x.npu().cumsum(0))
    assert torch.equal(result.cpu(), x.float().cumsum(0).half())
    scores = torch.linspace(-3, 3, 64, dtype=torch.bfloat16)
    result, _ = served(lambda: scores.npu().softmax(0))
    assert torch.equal(result.cpu(), scores.float().softmax(0).bfloat16())
    large = torch.full((8,), 256.0, dtype=torch.bfloat16)
    result, _ = served(lambda: torch.add(large.npu(), large.npu(), alpha=1.001))
    factor = torch.tensor(1.001).bfloat16().float()
    assert torch.equal(result.cpu(), (large.float() + large.float() * factor).bfloat16())


def test_indices_of_int32_are_taken():
    x, index = npu(2, 3), torch.tensor([[0, 1, 0]], dtype=torch.int32).npu()
    result, calls = served(lambda: x.gather(0, index))
    assert result.tolist() == [[1, 5, 3]] and calls == 1
    wide = index.long()
    assert served(lambda: x.gather(0, wide))[0].tolist() == [[1, 5, 3]]


def test_observers_and_faults_see_every_launch():
    x = npu(3)
    served(lambda: x.exp())
    with report.record() as seen:
        _, calls = served(lambda: x.exp())
    assert seen.operators["aten::exp"] == 2 and not calls
    with faults.failing_kernel("aten::exp"), pytest.raises(RuntimeError, match="aten::exp"):
        x.exp()
    assert served(lambda: x.exp())[1] == 1


def test_captures_and_profilers_see_every_launch():
    x = npu(3)
    served(lambda: x.exp())
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = x.exp()
    x.fill_(0)
    graph.replay()
    assert y.tolist() == [1, 1, 1]
    with torch.profiler.profile() as profile:
        x.exp()
    assert [event.key for event in profile.key_averages() if event.key.startswith("aten::")] == ["aten::exp"]


def test_gradients_pass():
    x = npu(3).requires_grad_()
    for _ in range(2):
        x.grad = None
        (x.exp() * x).sum().backward()
    value = torch.arange(1, 4.0)
    torch.testing.assert_close(x.grad.cpu(), value.exp() * (1 + value))


def test_autocast_of_the_cpu_changes_nothing():
    x = npu(4, 4)
    served(lambda: x @ x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, _ = served(lambda: x @ x)
    assert result.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{plain_calls.VARIABLE: "0"}, {"CXX": "false"}], ids=["switched off", "compiler fails"]
)
def test_without_it_python_serves_all(environment, tmp_path):
    code = (
        "import moe_graph.simulator, torch; from moe_graph.simulator.eager import plain_calls\n"
        "x = torch.ones(2).npu(); x + x; print((x + x).tolist(), plain_calls.count())"
    )
    environment = {**os.environ, **environment, "MOE_GRAPH_CACHE": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert run.stdout == "[2.0, 2.0] 0\n", run.stderr
