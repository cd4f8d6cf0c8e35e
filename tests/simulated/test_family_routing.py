"""The routing operators in graph mode: torchair's own converters, executed by the engine, equal the fallback on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch_npu

from family.grouped_matmul import random
from family.routing import choose_experts
from moe_graph import testing
from versions import need_torch

HALVES = [torch.float16, torch.bfloat16]
each_mode = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])


def assert_lowers(function, inputs, dynamic, more_inputs=(), **nodes):
    lowered = testing.lower(function, *inputs, more_inputs=more_inputs if dynamic else (), dynamic=dynamic)
    testing.assert_one_graph(lowered)
    testing.assert_nodes(lowered.graph, **nodes)
    testing.assert_equals_eager(lowered)
    return lowered


def tokens(rows, dtype=torch.bfloat16, seed=0):
    return random((rows, 16), dtype, seed), choose_experts(rows, 2, 8, seed, invalid=True)


@each_mode
@pytest.mark.parametrize(
    ("kind", "dtype"), zip([0, 1, 2, 1], [*HALVES, torch.float32, torch.int8])
)  # cumsum, count, key_value
def test_init_routing(dynamic, kind, dtype):
    def function(x, expert_idx):
        return torch_npu.npu_moe_init_routing_v2(
            x,
            expert_idx,
            expert_num=8,
            expert_tokens_num_type=kind,
            expert_tokens_num_flag=True,
            active_expert_range=[2, 6],
            row_idx_type=kind % 2,
        )

    more = [tokens(9, dtype, 1), tokens(30, dtype, 2)]
    assert_lowers(function, tokens(6, dtype), dynamic, more, MoeInitRoutingV3=1)


@each_mode
@pytest.mark.parametrize("mode", [-1, 0, 1], ids=["none", "static", "dynamic quantization"])
@pytest.mark.parametrize("drop_pad", [False, True])
def test_init_routing_quantizes(dynamic, mode, drop_pad):
    def function(x, expert_idx, scale, offset=None):
        return torch_npu.npu_moe_init_routing_v2(
            x,
            expert_idx,
            scale=scale,
            offset=offset,
            expert_num=8,
            active_expert_range=[0, 8],
            expert_capacity=3 if drop_pad else -1,
            drop_pad_mode=int(drop_pad),
            expert_tokens_num_type=1,
            expert_tokens_num_flag=True,
            quant_mode=mode,
        )

    def inputs(rows):
        shapes = {-1: [(rows,)], 0: [(1,), (1,)], 1: [(8, 16)]}[mode]
        return *tokens(rows), *(random(shape, torch.float32, 9) for shape in shapes)

    assert_lowers(function, inputs(6), dynamic, [inputs(9), inputs(30)], MoeInitRoutingV3=1)


@each_mode
def test_init_routing_active_rows(dynamic):
    need_torch(2, 9)  # torch itself compiles twice before

    def function(x, expert_idx):
        return torch_npu.npu_moe_init_routing_v2(x, expert_idx, expert_num=8, active_num=20, active_expert_range=[0, 8])

    assert_lowers(function, tokens(6), dynamic, [tokens(9), tokens(30)], MoeInitRoutingV3=1)
