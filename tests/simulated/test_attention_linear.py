"""The gated delta rules and the merging of attention's parts on NPU tensors and, where torchair lowers them, in graphs."""

from __future__ import annotations

import torch
import torch_npu
import torchair

from attention.device import assert_equal, assert_everywhere, moved
from moe_graph.operators.attention.attention_update import attention_update
from moe_graph.operators.attention.chunk_gated_delta_rule import chunk_gated_delta_rule
from moe_graph.operators.attention.recurrent_gated_delta_rule import (
    recurrent_gated_delta_rule,
    recurrent_gated_delta_rule_functional,
)
from moe_graph.operators.attention.ring_attention_update import ring_attention_update
from versions import need_operator

NPU, HALF = torch.ops.npu, torch.bfloat16


def steps():
    generator = torch.Generator().manual_seed(0)
    return {
        "query": torch.randn(3, 1, 4, generator=generator).to(HALF),
        "key": torch.nn.functional.normalize(torch.randn(3, 1, 4, generator=generator), dim=-1).to(HALF),
        "value": torch.randn(3, 2, 3, generator=generator).to(HALF),
        "state": torch.randn(5, 2, 3, 4, generator=generator).to(HALF),
        "beta": torch.rand(3, 2, generator=generator).to(HALF),
        "g": -torch.rand(3, 2, generator=generator),
        "scale": 0.5,
        "actual_seq_lengths": torch.tensor([2, 1], dtype=torch.int32),
        "ssm_state_indices": torch.tensor([4, 0, 2], dtype=torch.int32),
        "num_accepted_tokens": torch.tensor([2, 1], dtype=torch.int32),
    }


def test_the_recurrent_rule_leaves_its_state_alone_in_the_functional_form():
    assert_everywhere(NPU.npu_recurrent_gated_delta_rule_functional, recurrent_gated_delta_rule_functional, steps())


def test_the_recurrent_rule_changes_its_state():
    expected = steps()
    out = recurrent_gated_delta_rule(**expected)
    eager = moved(steps(), "npu")
    assert_equal(NPU.npu_recurrent_gated_delta_rule(**eager), [out])
    assert_equal(eager["state"], [expected["state"]])
    for dynamic in (False, True):
        torch._dynamo.reset()
        arguments = moved(steps(), "npu")
        compiled = torch.compile(
            lambda **given: torch_npu.npu_recurrent_gated_delta_rule(**given),
            backend=torchair.get_npu_backend(),
            dynamic=dynamic,
            fullgraph=True,
        )
        assert_equal(compiled(**arguments), [out])
        assert_equal(arguments["state"], [expected["state"]])


def test_prompts():
    need_operator("npu_chunk_gated_delta_rule")
    arguments = {
        name: value for name, value in steps().items() if name in ("query", "key", "value", "beta", "g", "scale")
    }
    arguments["initial_state"] = steps()["state"][:2].contiguous()
    arguments["actual_seq_lengths"] = torch.tensor([2, 1], dtype=torch.int32)
    found = NPU.npu_chunk_gated_delta_rule(**moved(arguments, "npu"))
    assert_equal(found, chunk_gated_delta_rule(**arguments))


def test_merging():
    need_operator("npu_ring_attention_update")
    generator = torch.Generator().manual_seed(0)
    sums, outs = torch.randn(3, 5, generator=generator), torch.randn(3, 5, 8, generator=generator)
    arguments = {"lse": list(sums), "local_out": list(outs), "update_type": 1}

    def call(a, b, c, x, y, z):
        return NPU.npu_attention_update([a, b, c], [x, y, z], 1)

    expected = attention_update(**arguments)
    flat = [x.npu() for x in (*sums, *outs)]
    assert_equal(call(*flat), expected)
    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(call, backend=torchair.get_npu_backend(), dynamic=dynamic, fullgraph=True)
        assert_equal(compiled(*flat), expected)
    parts = [torch.randn(4, 2, 6), *torch.rand(2, 2, 3, 4, 8)] * 2
    assert_equal(NPU.npu_ring_attention_update(*(x.npu() for x in parts)), ring_attention_update(*parts))
