"""compare_graph: the operator that the engine computes wrongly is named."""

import pytest
import torch
import torch_npu
import torchair
from rich.console import Console

import cases
import moe_graph
from moe_graph.engine import KernelError, compare, registry
from moe_graph.simulator.eager.call import Operator


def chain(x, y):
    a = torch.relu(x @ y)
    b = a * 2 + 1
    c = torch.sigmoid(b)  # the broken line
    d = c.sum(-1, keepdim=True) + b
    return d.reshape(-1), c.to(torch.bfloat16)


def inputs():
    torch.manual_seed(0)
    return torch.randn(4, 3), torch.randn(3, 5)


both = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])


@pytest.fixture
def break_kernel(monkeypatch):
    """break_kernel(GE type, function of its output): from then on the kernel returns that."""

    def replace(ge_type, change):
        right = registry._kernels[ge_type]

        def wrong(*args, **attributes):
            return change(right.function(*args, **attributes))

        fields = {name: getattr(right, name) for name in right.__dataclass_fields__}
        monkeypatch.setitem(registry._kernels, ge_type, registry.Kernel(**{**fields, "function": wrong}))

    return replace


@both
def test_a_right_graph_agrees(dynamic):
    report = moe_graph.compare_graph(chain, *inputs(), dynamic=dynamic)
    assert report.ok and report.first is None, str(report)
    agree = {tensor.target for tensor in report.with_status("agrees")}
    assert agree >= {"aten.relu.default", "aten.sigmoid.default", "aten.mul.Tensor"} and "differs" not in agree
    assert not report.with_status("no reference")
    assert str(report).startswith(f"{len(report.tensors)} tensors: {len(report.with_status('agrees'))} agrees")


@both
def test_the_broken_operator_is_the_first_that_differs(break_kernel, dynamic):
    def off_at_one_place(y):
        y = y.clone()
        y[1, 2] += 1e-2
        return y

    break_kernel("Sigmoid", off_at_one_place)
    report = moe_graph.compare_graph(chain, *inputs(), dynamic=dynamic)
    assert not report.ok
    first = report.first
    assert (first.target, first.position, first.count) == ("aten.sigmoid.default", (1, 2), 1)
    assert first.max_abs_error == pytest.approx(1e-2, rel=1e-3)
    assert first.engine - first.expected == pytest.approx(1e-2, rel=1e-3)
    assert "test_compare.py" in first.line and "in chain" in first.line and "c = torch.sigmoid(b)" in first.line
    assert "GE type Sigmoid" in first.ge_node
    assert "c = torch.sigmoid(b)" in str(report) and "at [1, 2]" in str(report)
    before = [tensor.target for tensor in report.tensors[: report.tensors.index(first)] if tensor.status == "agrees"]
    assert {"aten.relu.default", "aten.mul.Tensor"} <= set(before)
    after = [tensor.target for tensor in report.with_status("differs")]
    assert "aten.sum.dim_IntList" in after  # what reads it differs too
    console = Console(width=400)
    with console.capture() as capture:
        console.print(report.table())
    assert "differs" in capture.get() and "aten.sigmoid.default" in capture.get()


def test_tolerances(break_kernel):
    break_kernel("Sigmoid", lambda y: y + 1e-2)
    assert not moe_graph.compare_graph(chain, *inputs(), rtol=0, atol=1e-3).ok
    assert moe_graph.compare_graph(chain, *inputs(), atol=0.2).ok


def test_a_wrong_dtype_or_shape_is_a_difference(break_kernel):
    break_kernel("Relu", lambda y: y[None])
    first = moe_graph.compare_graph(lambda x: torch.relu(x).sum(), torch.ones(3)).first
    assert (first.target, first.position) == ("aten.relu.default", None)
    assert (first.engine, first.expected) == ("torch.float32 [1, 3]", "torch.float32 [3]")


@both
def test_nan_against_nan_agrees_and_against_a_number_differs(break_kernel, dynamic):
    x = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    assert moe_graph.compare_graph(lambda x: torch.relu(x) * 2, x, dynamic=dynamic).ok
    break_kernel("Relu", lambda y: y.nan_to_num())
    first = moe_graph.compare_graph(lambda x: torch.relu(x) * 2, x, dynamic=dynamic).first
    assert first.target == "aten.relu.default" and first.position == (1,) and first.expected != first.expected


def test_an_operator_of_several_outputs_and_whole_numbers(break_kernel):
    def function(tokens, counts):
        routed = moe_graph.moe_re_routing(tokens, counts)
        return routed.permute_tokens, routed.permute_token_idx, routed.expert_token_num + 1

    tokens, counts = cases.make((20, 8), torch.int8), cases.make_counts(3, 4, 20)
    report = moe_graph.compare_graph(function, tokens, counts)
    assert report.ok and {t.output for t in report.with_status("agrees") if "routing" in t.target} >= {"0", "2", "3"}
    break_kernel("MoeReRouting", lambda y: (y[0], y[1], y[2].flip(0), y[3]))
    first = moe_graph.compare_graph(function, tokens, counts).first
    assert "routing" in first.target and first.output == "2" and first.count == 20


def test_graph_breaks_and_modules():
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 5)

        def forward(self, x):
            y = self.linear(x)
            torch._dynamo.graph_break()
            return torch.relu(y) + 1

    report = moe_graph.compare_graph(Broken().npu(), torch.randn(4, 3))
    assert report.ok and len({tensor.graph for tensor in report.tensors}) == 2


def test_what_is_changed_in_place_is_compared_with_what_it_was_before():
    def step(state, x):
        state.add_(x)
        return state * 2

    config = torchair.CompilerConfig()
    config.experimental_config.keep_inference_input_mutations = True
    state = torch.ones(4).npu()
    report = moe_graph.compare_graph(step, state, torch.arange(4.0), config=config)
    assert report.ok and report.with_status("agrees")
    assert state.cpu().tolist() == [1, 2, 3, 4]


def test_an_operator_without_a_cpu_kernel_goes_on_with_the_engines_value(monkeypatch):
    original = compare.Reference.call_function

    def call_function(self, target, args, kwargs):
        if target is torch.ops.aten.sigmoid.default:
            raise NotImplementedError("no kernel on the CPU")
        return original(self, target, args, kwargs)

    monkeypatch.setattr(compare.Reference, "call_function", call_function)
    report = moe_graph.compare_graph(chain, *inputs())
    (missing,) = report.with_status("no reference")
    assert missing.target == "aten.sigmoid.default" and "no kernel on the CPU" in missing.reason
    assert report.ok and "aten.sum.dim_IntList" in {tensor.target for tensor in report.with_status("agrees")}


def test_what_orders_operators_needs_no_reference():
    def function(x, y):
        with torchair.scope.npu_stream_switch("2", 3), torchair.scope.limit_core_num(4, 5):
            y = y.exp()
        return torchair.scope.npu_wait_tensor(x * 2, y) + 1, y

    report = moe_graph.compare_graph(function, torch.randn(3, 4), torch.randn(2))
    assert report.ok and not report.with_status("no reference")
    assert {"aten.exp.default", "aten.add.Tensor"} <= {tensor.target for tensor in report.with_status("agrees")}


def test_many_comparisons_of_one_function_each_compile_it(break_kernel):
    for _ in range(12):  # more than dynamo compiles one code object
        assert moe_graph.compare_graph(chain, *inputs()).ok
    break_kernel("Sigmoid", lambda y: y + 1)
    assert not moe_graph.compare_graph(chain, *inputs()).ok


def test_what_cannot_be_compared_is_refused(monkeypatch):
    with pytest.raises(RuntimeError, match="nothing was compared"):
        moe_graph.compare_graph(lambda x: x, torch.ones(3))
    monkeypatch.delitem(registry._kernels, "Sigmoid")
    with pytest.raises(Exception, match="no kernel for GE type Sigmoid"):
        moe_graph.compare_graph(chain, *inputs())


def test_a_failing_kernel_is_named(break_kernel):
    def fail(y):
        raise ValueError("out of order")

    break_kernel("Sigmoid", fail)
    with pytest.raises(KernelError, match="out of order"):
        moe_graph.compare_graph(chain, *inputs())


def test_it_needs_the_simulated_device(monkeypatch):
    monkeypatch.setattr("moe_graph.simulator.is_active", lambda: False)
    with pytest.raises(RuntimeError, match="needs the simulated device"):
        moe_graph.compare_graph(chain, *inputs())
    assert torch_npu.npu.is_available()


def test_re_routing_in_a_captured_graph_is_compared_and_traced():
    """The C runtime launches it, Python does not."""
    config = torchair.CompilerConfig()
    config.mode = "reduce-overhead"

    def program(x, counts):
        tokens, _, places, per_expert = torch.ops.npu.npu_moe_re_routing(x.half() * 2, counts)
        return tokens.relu() + 1, places, per_expert

    counts = torch.tensor([[2, 0, 3], [1, 4, 0]], dtype=torch.int32)
    with moe_graph.trace(statistics=True) as trace:
        report = moe_graph.compare_graph(program, torch.randn(10, 8), counts, config=config)
    statuses = [t.status for t in report.tensors if "re_routing" in t.target]
    assert report.ok and statuses == ["agrees", "not seen", "agrees", "agrees"], report  # no scales were given
    assert [node.type for node in trace.nodes if "re_routing" in node.type] == ["npu.npu_moe_re_routing.default"]
    (launch,) = [node for node in trace.nodes if "re_routing" in node.type]
    assert [(output.name, output.shape) for output in launch.outputs] == [("0", (10, 8)), ("2", (10,)), ("3", (3,))]
    assert launch.outputs[2].statistics.maximum == 4 and launch.name == "aclnnMoeReRouting"


def test_captured_launches_are_held_against_the_fx_graph():
    config = torchair.CompilerConfig()
    config.mode = "reduce-overhead"

    def program(x, w):
        h = torch.tanh(x @ w).view(-1)
        return torch.sigmoid(h * 2), h.view(2, 3).topk(2, dim=1)[0]

    inputs = torch.randn(2, 4), torch.randn(4, 3)
    report = moe_graph.compare_graph(program, *inputs, config=config)
    assert report.ok, report
    seen = {tensor.target: tensor.status for tensor in report.tensors}
    launched = ("tanh_.default", "topk.default", "sigmoid_.default")  # tanh_: torchair lets it write in place
    assert [seen[f"aten.{name}"] for name in launched] == ["agrees"] * 3, seen
    assert {status for target, status in seen.items() if "view" in target or "reshape" in target} <= {"not seen"}, seen

    def wrong(x):
        return x.copy_(torch.sigmoid(x) * 1.01)

    broken = Operator(torch.ops.aten.sigmoid_.default, wrong)
    library = torch.library.Library("aten", "IMPL")
    library.impl("sigmoid_", lambda *args, **kwargs: broken(args, kwargs), "PrivateUse1")
    try:
        report = moe_graph.compare_graph(program, *inputs, config=config)
    finally:
        library._destroy()
    assert report.first.target == "aten.sigmoid_.default" and report.first.ge_node.startswith("launch ")


def decode(x, weight, cache, where):
    """A step as a model has it: torch_npu's operators, and a cache that is changed in place."""
    y = torch.ops.npu.npu_rms_norm(x, weight)[0]  # the broken line
    torch.ops.npu.npu_scatter_nd_update_(cache, where, y)
    chosen = torch.ops.npu.npu_moe_gating_top_k_softmax(cache, None, 2)
    return y @ cache.T, chosen[1]


def program(mode):
    """A program that knows nothing of the comparison: three steps, and the cache after them."""
    torch.manual_seed(0)
    weight, cache = torch.rand(8).npu(), torch.zeros(6, 8).npu()
    if mode == "npugraph_ex":
        step = torch.compile(decode, backend="npugraph_ex", dynamic=False)
    else:
        config = torchair.CompilerConfig()
        config.mode = mode
        step = torch.compile(decode, backend=torchair.get_npu_backend(compiler_config=config), dynamic=False)
    with torch.no_grad():
        for number in range(3):
            step(torch.randn(2, 8).npu(), weight, cache, torch.tensor([[number], [number + 3]]).npu())
    return cache.cpu()


@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead", "npugraph_ex"])
def test_a_program_is_compared_each_time_its_graph_runs(mode):
    torch._dynamo.reset()
    with moe_graph.compare_graphs(rtol=0, atol=0) as report:
        watched = program(mode)
    assert report.ok, str(report)
    normalised = [tensor for tensor in report.tensors if "rms_norm" in tensor.target and tensor.status == "agrees"]
    assert len(normalised) == 3 * 2  # its two outputs
    assert not report.with_status("no reference")
    torch._dynamo.reset()
    assert torch.equal(program(mode), watched)  # the same program, unwatched
    assert watched.abs().sum(1).gt(0).all()


def test_the_operator_of_a_program_that_is_wrong_is_named(break_kernel):
    torch._dynamo.reset()
    break_kernel("RmsNorm", lambda outputs: (outputs[0] * 1.01, *outputs[1:]))
    with moe_graph.compare_graphs() as report:
        program("max-autotune")
    assert "rms_norm" in report.first.target and "# the broken line" in report.first.line
    assert len(report.with_status("differs")) > 3  # what reads it, too
