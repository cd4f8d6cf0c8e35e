"""The operators around re-routing on NPU tensors: called as on a device, compared with the same call on CPU tensors."""

import pytest
import torch
import torch_npu

from moe_graph import family
from versions import need_torch

GROUPS = torch.tensor([3, 0, 5])


def swiglu(x):
    return torch_npu.npu_swiglu(x)


def grouped_matmul(x, weight):
    groups = GROUPS.to(x.device)
    return torch_npu.npu_grouped_matmul(
        [x], [weight], group_list=groups, group_list_type=1, group_type=0, split_item=2
    )[0]


CALLS = {
    "swiglu": (swiglu, lambda: (torch.randn(8, 6),)),
    "grouped_matmul": (grouped_matmul, lambda: (torch.randn(8, 6), torch.randn(3, 6, 4))),
}


@pytest.mark.parametrize("name", CALLS)
def test_eager_equals_the_cpu(name):
    function, make = CALLS[name]
    inputs = make()
    result = function(*(x.npu() for x in inputs))
    assert result.device.type == "npu"
    torch.testing.assert_close(result.cpu(), function(*inputs))


@pytest.mark.parametrize("name", CALLS)
def test_gradients_equal_the_cpus(name):
    function, make = CALLS[name]
    inputs = make()
    gradients = []
    for device in ("cpu", "npu"):
        leaves = [x.detach().to(device).requires_grad_() for x in inputs]
        output = function(*leaves)
        gradients.append(torch.autograd.grad(output.square().sum(), leaves))
    for on_cpu, on_npu in zip(*gradients):
        assert on_npu.device.type == "npu"
        torch.testing.assert_close(on_npu.cpu(), on_cpu)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_refused_argument_is_a_runtime_error_as_torch_npus(kind):
    x, weight = torch.ones(2, 3).npu(), torch.ones(2, 3, 3).npu()
    with pytest.raises(kind, match="npu_grouped_matmul: group_type must be one of -1, 0, 2"):
        torch_npu.npu_grouped_matmul([x], [weight], group_list=torch.tensor([1, 2]).npu(), group_type=1, split_item=3)


def test_several_results_of_a_call_without_gradient():
    """What a device computes and the fallback does not has results where a gradient is required; asking for it is an error."""
    x = torch.empty(4, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    chosen = torch.empty(4, 2, dtype=torch.int32, device="meta")
    expanded, *_, scale = torch_npu.npu_moe_init_routing_v2(x, chosen, expert_num=4, quant_mode=4)
    assert (expanded.dtype, scale.dtype) == (torch.float8_e5m2, torch.float32)
    with pytest.raises(RuntimeError, match="this call has no gradient: .*quant_mode must be -1, 0 or 1"):
        scale.sum().backward()


@pytest.mark.parametrize("operator", family.OPERATORS, ids=lambda operator: operator.name)
def test_every_operator_has_a_kernel_for_the_device(operator):
    need_torch(2, 9)  # the dispatcher names no files before
    lines = torch._C._dispatch_dump(operator.qualname).splitlines()
    (active, *_) = [line for line in lines if line.startswith("PrivateUse1:")]
    assert "moe_graph/simulator/eager/" in active  # layer.py, and plain_calls.cpp once it was called
