"""npu_moe_finalize_routing in graph mode: torchair's converter, the engine's kernels, the CPU's numbers."""

import pytest
import torch
import torch_npu

from moe_graph import testing
from versions import need_argument

INDEX = torch.tensor([0, 3, -1, 2, 1, 5], dtype=torch.int32)
EXPERTS = torch.tensor([[0, 1], [1, 1], [0, 0]], dtype=torch.int32)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("mode, whole, node", [(0, True, ""), (0, False, "V2"), (2, True, "V2"), (2, False, "V2")])
def test_finalize_routing(mode, whole, node, dynamic):
    def finalize(rows, skip, bias, scales):
        bias, experts = (bias, EXPERTS.to(rows.device)) if whole else (None, None)
        index = INDEX.to(rows.device)
        return torch_npu.npu_moe_finalize_routing(rows, skip, None, bias, scales, index, experts, drop_pad_mode=mode)

    inputs = torch.randn(6, 4), torch.randn(3, 4), torch.randn(2, 4), torch.rand(3, 2)
    lowered = testing.lower(finalize, *inputs, dynamic=dynamic)
    testing.assert_nodes(lowered.graph, **{f"MoeFinalizeRouting{node}": 1})
    testing.assert_equals_eager(lowered)


def test_without_scales_and_with_a_capacity():
    need_argument(torch.ops.npu.npu_moe_finalize_routing.default, "k")

    def finalize(rows, index):
        return torch_npu.npu_moe_finalize_routing(rows, None, None, None, None, index, None, drop_pad_mode=3, k=2)

    lowered = testing.lower(finalize, torch.randn(3, 2, 4).bfloat16(), INDEX)
    testing.assert_nodes(lowered.graph, MoeFinalizeRoutingV2=1)
    testing.assert_equals_eager(lowered)
