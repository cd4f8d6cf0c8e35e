"""Graph mode: the real torchair lowers, the stand-in for its extension module executes on the simulated device's memory."""

import pytest
import torch
import torch_npu
import torchair
from torchair.core import _torchair

from cases import make, make_counts
from moe_graph.foundation import compat
from moe_graph.simulator.graph_mode import torchair_core
from moe_graph.simulator.graph_mode.ir_definitions import ir_definition
from reference import assert_matches


def compiled(function, dynamic=False, **settings):
    torch._dynamo.reset()
    config = torchair.CompilerConfig()
    for path, value in settings.items():
        target = config
        *way, last = path.split("__")
        for name in way:
            target = getattr(target, name)
        setattr(target, last, value)
    return torch.compile(
        function, backend=torchair.get_npu_backend(compiler_config=config), dynamic=dynamic, fullgraph=True
    )


def re_route(tokens, counts, scales):
    return torch_npu.npu_moe_re_routing(tokens, counts, per_token_scales=scales, expert_token_num_type=1, idx_type=0)


def test_the_documented_graph():
    tokens, counts, scales = make((64, 32), torch.int8), make_counts(4, 4, 64), make((64,), torch.float32)
    function = compiled(re_route, experimental_config__keep_inference_input_mutations=True)
    outputs = function(tokens.npu(), counts.npu(), scales.npu())
    assert all(output.device == torch.device("npu:0") for output in outputs)
    assert_matches(outputs, tokens, counts, scales)


def test_a_dynamic_graph_serves_many_lengths():
    function = compiled(re_route, dynamic=True)
    for count in (3, 40, 17, 96):
        tokens, counts, scales = (
            make((count, 8), torch.float16),
            make_counts(2, 5, count),
            make((count,), torch.float32),
        )
        assert_matches(function(tokens.npu(), counts.npu(), scales.npu()), tokens, counts, scales)


def test_an_input_that_the_graph_changes_is_changed_in_place():
    def step(state, x):
        state.add_(x)
        return state * 2

    state, x = torch.ones(4).npu(), torch.arange(4.0).npu()
    place = state.data_ptr()
    function = compiled(step, experimental_config__keep_inference_input_mutations=True)
    for repeat in (1, 2):
        assert torch.equal(function(state, x).cpu(), 2 * (1 + repeat * torch.arange(4.0)))
        assert torch.equal(state.cpu(), 1 + repeat * torch.arange(4.0)) and state.data_ptr() == place


def test_outputs_do_not_share_memory_with_inputs():
    x = torch.ones(4).npu()
    output = compiled(lambda x: (x.view(2, 2), x + 1))(x)[1]
    output.zero_()
    assert torch.equal(x.cpu(), torch.ones(4))


def test_views_are_read_in_place():
    wide = torch.arange(24.0).view(4, 6).npu()
    function = compiled(lambda x: x * 2)
    assert torch.equal(function(wide[:, 1:4]).cpu(), wide.cpu()[:, 1:4] * 2)
    assert torch.equal(function(wide.t()).cpu(), wide.cpu().t() * 2)


def graph():
    return torchair_core.TorchNpuGraphBase("some_graph")


def test_an_unloaded_graph_does_not_run():
    with pytest.raises(RuntimeError, match="graph 'some_graph' cannot run before it is loaded"):
        graph().run(([], [], None))


def test_assigned_outputs_are_written_and_checked():
    class Program:
        def run(self, inputs):
            return [inputs[0] + 1, inputs[0] * 2]

    made = graph()
    made._program = Program()
    x, target = torch.arange(3.0).npu(), torch.zeros(3).npu()
    first, second = made.run(([x], [None, target], None))
    assert second is target and target.tolist() == [0, 2, 4] and first.tolist() == [1, 2, 3] and first.is_npu
    with pytest.raises(
        RuntimeError, match=r"output 1 is torch.float32 \(3,\), but the tensor assigned to it is torch.float32 \(4,\)"
    ):
        made.run(([x], [None, torch.zeros(4).npu()], None))


def test_doors_that_need_cann_say_so():
    with pytest.raises(torchair_core.NeedsCann, match="auto tune .* needs CANN's graph engine"):
        graph().auto_tune(([], None))


def test_definitions_come_from_torchairs_own_declarations():
    definition = ir_definition("MoeReRouting")
    assert definition.status == "SUCCESS"
    assert definition.inputs == [
        ("tokens", "required"),
        ("expert_token_num_per_rank", "required"),
        ("per_token_scales", "optional"),
    ]
    assert [name for name, _ in definition.outputs] == [
        "permute_tokens",
        "permute_per_token_scales",
        "permute_token_idx",
        "expert_token_num",
    ]
    assert definition.attrs == [("expert_token_num_type", "VT_INT"), ("idx_type", "VT_INT")]
    assert ir_definition("ConcatV2").inputs == [("x", "dynamic"), ("concat_dim", "required")]
    assert _torchair.get_registered_ir_def("NoSuchOperator") == ("ERROR", [], [], [])


def test_one_hot_is_what_torch_npu_makes_of_it():
    """torch's own composition asserts that no class is negative, which torchair does not lower."""
    if compat.kernel_below("aten::one_hot", "AutogradPrivateUse1") is None:
        pytest.skip("this torch has no way to call torch_npu's own")
    classes = torch.tensor([0, 2, 1])
    function = compiled(lambda x: torch.nn.functional.one_hot(x, 3))
    assert torch.equal(function(classes.npu()).cpu(), torch.nn.functional.one_hot(classes, 3))
