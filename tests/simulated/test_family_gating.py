"""Gates in graph mode: torchair's converter, the engine's kernel, the CPU's numbers."""

import pytest
import torch
import torch_npu

from moe_graph import testing


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("norm_type", [0, 1], ids=["softmax", "sigmoid"])
def test_gating_top_k(dynamic, norm_type):
    def gate(x, bias):
        return torch_npu.npu_moe_gating_top_k(
            x,
            3,
            bias=bias,
            k_group=2,
            group_count=4,
            group_select_mode=1,
            norm_type=norm_type,
            out_flag=True,
            routed_scaling_factor=2.5,
        )

    bias = torch.rand(16)
    more = [(torch.randn(7, 16), bias)] if dynamic else []
    lowered = testing.lower(gate, torch.randn(5, 16), bias, more_inputs=more, dynamic=dynamic)
    testing.assert_nodes(lowered.graph, MoeGatingTopK=1)
    testing.assert_equals_eager(lowered)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compute_expert_tokens(dynamic):
    def count(experts):
        return torch_npu.npu_moe_compute_expert_tokens(experts, 5)

    more = [(torch.tensor([1, 1, 4, 4, 4]).int(),)] if dynamic else []
    lowered = testing.lower(count, torch.tensor([0, 0, 2]).int(), more_inputs=more, dynamic=dynamic)
    testing.assert_nodes(lowered.graph, MoeComputeExpertTokens=1)
    testing.assert_equals_eager(lowered)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_gating_top_k_softmax(dynamic):
    def gate(x, finished):
        return torch_npu.npu_moe_gating_top_k_softmax(x, finished, k=2)

    more = [(torch.randn(7, 6), torch.arange(7) % 2 == 0)] if dynamic else []
    lowered = testing.lower(gate, torch.randn(5, 6), torch.arange(5) == 1, more_inputs=more, dynamic=dynamic)
    testing.assert_nodes(lowered.graph, MoeGatingTopKSoftmax=1)
    testing.assert_equals_eager(lowered)


@pytest.mark.parametrize("dynamic", [False, True])
def test_gating_top_k_by_a_table_of_experts(dynamic):
    def gate(x, ids, table):
        return torch_npu.npu_moe_gating_top_k(x, 2, input_ids=ids, tid2eid=table, norm_type=1, out_flag=True)

    table = torch.tensor([[3, 1], [7, 0]], dtype=torch.int32)
    more = [(torch.randn(7, 8), torch.arange(7) % 2, table)] if dynamic else []
    lowered = testing.lower(gate, torch.randn(5, 8), torch.arange(5) % 2, table, more_inputs=more, dynamic=dynamic)
    testing.assert_nodes(lowered.graph, MoeGatingTopK=1)
    testing.assert_equals_eager(lowered)


def test_gating_top_k_backward_on_the_device():
    x = torch.randn(4, 8).npu().requires_grad_()
    y, chosen, norm = torch_npu.npu_moe_gating_top_k(x, 3, norm_type=1, out_flag=True)
    grad = torch.randn(4, 3).npu()
    (expected,) = torch.autograd.grad(y, x, grad)
    found = torch_npu.npu_moe_gating_top_k_backward(norm.detach(), grad, chosen, norm_type=1)
    torch.testing.assert_close(found.cpu(), expected.cpu())
