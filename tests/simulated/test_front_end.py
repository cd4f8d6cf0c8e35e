"""`moe_graph.moe_re_routing` on NPU tensors serves every call, as in graph mode; `torch_npu.npu_moe_re_routing` stays the device's."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch_npu

import moe_graph
from moe_graph import simulator
from reference import assert_matches

COUNTS = torch.tensor([[2, 1, 0], [0, 2, 1]])
DTYPES = [torch.float32, torch.bfloat16, torch.int64]
SCALES = {"none": None, "[A]": torch.rand(6), "[A, S]": torch.rand(6, 2)}


@pytest.mark.parametrize("soc", ["A2", "950"])
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_what_the_kernel_lacks_is_composed(soc, scales, monkeypatch):
    monkeypatch.setenv("MOE_GRAPH_SIM_SOC", soc)
    for dtype, hidden, num, idx in itertools.product(DTYPES, (4, 16384), (0, 1), (0, 1)):
        tokens = torch.randn(6, hidden).mul(9).to(dtype)
        before = len(simulator.kernel_calls())
        outputs = moe_graph.moe_re_routing(
            tokens.npu(),
            COUNTS.npu(),
            per_token_scales=None if scales is None else scales.npu(),
            expert_token_num_type=num,
            idx_type=idx,
        )
        assert len(simulator.kernel_calls()) > before  # the index is the kernel's in any case
        assert_matches([x.cpu() for x in outputs], tokens, COUNTS, scales, num, idx)


def test_derivatives_and_batches_go_through():
    tokens, counts = torch.randn(6, 3).npu().requires_grad_(), COUNTS.npu()
    outputs = moe_graph.moe_re_routing(tokens, counts, expert_token_num_type=0)
    outputs.permute_tokens.square().sum().backward()
    assert torch.equal(tokens.grad, 2 * tokens)
    assert torch.equal(moe_graph.moe_un_routing(outputs.permute_tokens, counts).tokens, tokens)
    with pytest.raises(RuntimeError):
        torch_npu.npu_moe_re_routing(tokens.detach(), counts)
    for function, dtype in (
        (lambda x: moe_graph.moe_re_routing(x, counts)[0], torch.float32),
        (lambda x: torch_npu.npu_moe_re_routing(x, counts)[0], torch.bfloat16),
    ):
        batch = torch.randn(2, 6, 3).to(dtype).npu()
        assert torch.equal(torch.vmap(function)(batch), torch.stack([function(x) for x in batch]))
        assert torch.equal(torch.func.jvp(function, (batch[0],), (batch[1],))[1], function(batch[1]))
