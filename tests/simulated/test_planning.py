"""Graphs without weights: described modules are lowered to the graph that the same module with weights is lowered to."""

from __future__ import annotations

import resource

import pytest
import torch
import torch_npu
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import cases
import moe_graph
from moe_graph import testing
from moe_graph.planning import lowering


class Model(nn.Module):
    """Tied weights, a buffer, and the operator."""

    def __init__(self, size=8):
        super().__init__()
        self.first = nn.Linear(size, size, bias=False)
        self.second = nn.Linear(size, size)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.ones(size))

    def forward(self, x, counts):
        hidden = self.second(self.first(x) + self.shift)
        return moe_graph.moe_re_routing(hidden, counts).permute_tokens


def inputs(count, size=8):
    return torch.randn(count, size).bfloat16(), cases.make_counts(2, 3, count, seed=count)


def described(values):
    return [value.to("meta") for value in values]


@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_described_module_gives_the_graph_of_the_real_one(mode, dynamic):
    calls = [inputs(10), inputs(31)] if dynamic else [inputs(10)]
    how = dict(dynamic=dynamic, mode=mode)
    model = Model().bfloat16()
    real = testing.lower(model, *calls[0], more_inputs=calls[1:], **how)
    fake = testing.lower(model, *described(calls[0]), more_inputs=[described(call) for call in calls[1:]], **how)
    assert fake.graph.text() == real.graph.text()
    assert [output.shape for output in fake.outputs] == [output.shape for output in real.outputs]
    assert all(isinstance(output, FakeTensor) for output in fake.outputs)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    with pytest.raises(ValueError, match="from shapes alone"):
        testing.assert_equals_eager(fake)


def test_parameters_of_hundreds_of_gib_take_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(200_000, 200_000, bias=False) for _ in range(4)))  # 4 x 160 GB
    lowered = testing.lower(model, torch.empty(3, 200_000, device="meta"))
    testing.assert_nodes(lowered.graph, MatMul=4)
    assert lowered.outputs[0].shape == (3, 200_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_a_tensor_that_to_does_not_move_stays_on_the_host():
    class Forgetful(Model):
        def __init__(self):
            super().__init__()
            self.scale = torch.full((8,), 2.0)

        def forward(self, x, counts):
            return super().forward(x, counts) * self.scale

    for arguments in (inputs(10), described(inputs(10))):
        with pytest.raises(Exception, match="same device, but found at least two devices, npu:0 and cpu"):
            testing.lower(Forgetful().bfloat16(), *arguments)


def test_fake_module_converted_by_the_program_keeps_its_ties():
    with lowering.recorded([]), FakeTensorMode() as mode:
        model = Model().to(torch.bfloat16).to("npu")
        assert model.first.weight is model.second.weight and model.first.weight.dtype == torch.bfloat16
        assert model.first.weight.device.type == "npu" and model.first.weight.fake_mode is mode


def test_an_attention_that_is_captured_costs_what_it_costs_in_a_graph_of_ge():
    """torchair captures it as a workspace and a form that writes to given tensors, which have no fake implementation."""

    def attention(q, kv):
        return torch_npu.npu_fused_infer_attention_score_v2(
            q, kv, kv, num_query_heads=2, input_layout="BSH", softmax_scale=0.25, actual_seq_kvlen=[5, 9]
        )[0]

    arguments = described([torch.ones(2, 1, 32).half(), torch.ones(2, 12, 32).half()])
    captured, lowered = (moe_graph.plan(attention, *arguments, mode=mode) for mode in ("reduce-overhead", None))
    steps = [step for step in captured.steps if "npu_fused_infer_attention_score_v2.out" in step.type]
    assert captured.flops == lowered.flops > 0
    assert captured.moved == steps[0].moved == sum(2 * x.numel() for x in arguments) + 2 * arguments[0].numel()


def test_dumps_of_every_kind(tmp_path):
    lowering.lower(Model().bfloat16(), [described(inputs(10))], dump=tmp_path)
    lowering.lower(Model().bfloat16(), [described(inputs(10))], dump=tmp_path, mode="reduce-overhead")
    found = sorted(path.name.rpartition("_graph_")[0] + path.suffix for path in tmp_path.iterdir())
    stages = ("dynamo_optimized", "dynamo_original")
    assert found == sorted(f"{s}{kind}" for s in stages for kind in (".pbtxt", ".py", ".txt", ".py"))


def test_the_line_of_the_program_is_kept():
    (graph,), _ = lowering.lower(Model().bfloat16(), [described(inputs(10))])
    lines = [line for name, line in graph.source_lines.items() if name.startswith("npu_moe_re_routing")]
    assert lines and all("test_planning.py:" in line and "in forward" in line for line in lines)


def test_shapes_that_do_not_fit_name_the_line():
    with pytest.raises(Exception, match=r"(?s)\[10, 7\] X \[8, 8\].*test_planning\.py.*self\.first\(x\)"):
        testing.lower(Model().bfloat16(), *described((inputs(10, size=7)[0], inputs(10)[1])))
