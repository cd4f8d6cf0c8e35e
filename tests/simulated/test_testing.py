"""moe_graph.testing, used as a model repository uses it."""

from __future__ import annotations

import pytest
import torch
import torch_npu
import torchair

import cases
import moe_graph
from moe_graph import dumps, testing
from moe_graph.dumps.diff import diff


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 8))

    def forward(self, x, counts):
        return moe_graph.moe_re_routing(x @ self.weight, counts).permute_tokens


def inputs(count):
    return torch.randn(count, 8), cases.make_counts(2, 3, count, seed=count)


def test_one_graph_for_all_token_counts(lower):
    lowered = lower(Model(), *inputs(10), more_inputs=[inputs(7), inputs(31)], dynamic=True)
    testing.assert_one_graph(lowered)
    testing.assert_nodes(lowered.graph, MoeReRouting=1, MatMul=1, Sort=0)
    testing.assert_no_host_tensors(lowered.graph)
    testing.assert_equals_eager(lowered)
    assert [len(output) for output in lowered.outputs] == [10, 7, 31]


def test_recompilation_is_seen(lower):
    lowered = lower(Model(), *inputs(10), more_inputs=[inputs(7)], dynamic=False)
    with pytest.raises(AssertionError, match="expected one graph for 2 calls, got 2"):
        testing.assert_one_graph(lowered)
    assert all(graph.node_types["MoeReRouting"] == 1 for graph in lowered.graphs)


def test_graph_break_is_seen(lower):
    def broken(x, counts):
        routed = moe_graph.moe_re_routing(x * 2, counts).permute_tokens
        torch._dynamo.graph_break()
        return routed + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        lower(broken, *inputs(10))
    lowered = lower(broken, *inputs(10), fullgraph=False)
    assert len(lowered.graphs) == 2
    testing.assert_equals_eager(lowered)


def test_wrong_counts_are_named(lower):
    graph = lower(Model(), *inputs(10)).graph
    with pytest.raises(AssertionError, match="MoeReRouting: expected 2, found 1; Sort: expected 1, found 0"):
        testing.assert_nodes(graph, MoeReRouting=2, Sort=1)


def test_wrong_numbers_are_seen(lower):
    lowered = lower(Model(), *inputs(10))
    lowered.outputs[0][3, 2] += 1
    with pytest.raises(AssertionError, match="Mismatched elements: 1 / 80"):
        testing.assert_equals_eager(lowered)


def test_host_inputs_are_named():
    graphs = []
    rows = torch.tensor([2, 0])  # indexing takes a tensor on the CPU
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    torch._dynamo.reset()
    with testing.recorded(graphs):
        compiled = torch.compile(lambda x, rows, n: x[rows] * n, backend=backend, dynamic=True)
        assert compiled(torch.arange(6.0).view(3, 2).npu(), rows, 3).tolist() == [[12, 15], [0, 3]]
    assert len(graphs[0].host_inputs) == 2
    with pytest.raises(AssertionError, match="inputs on the host: .'arg"):
        testing.assert_no_host_tensors(graphs[0])
    testing.assert_no_host_tensors(graphs[0], allowed=graphs[0].host_inputs)


def test_model_and_inputs_are_left_alone(lower):
    def in_place(x):
        x.add_(1)
        return x * 2

    x = torch.zeros(3)
    lowered = lower(in_place, x)
    testing.assert_equals_eager(lowered)
    assert x.tolist() == [0, 0, 0]


def test_change_of_the_graph_fails(lower, tmp_path, monkeypatch):
    file = tmp_path / "graphs" / "model.txt"
    graph = lower(Model(), *inputs(10)).graph
    with pytest.raises(
        AssertionError, match="does not exist: pytest --npu-graphs-update, or MOE_GRAPH_UPDATE_GRAPHS=1"
    ):
        testing.assert_unchanged(graph, file)
    monkeypatch.setenv(testing.UPDATE, "1")
    testing.assert_unchanged(graph, file)
    monkeypatch.delenv(testing.UPDATE)
    testing.assert_unchanged(lower(Model(), *inputs(10)).graph, file)  # lowered anew: the same text
    assert " = MoeReRouting(" in file.read_text() and "idx_type=0" in file.read_text()

    def changed(x, counts):
        return moe_graph.moe_re_routing(x * 3, counts, idx_type=1)[2]

    with pytest.raises(AssertionError, match=r"(?s)the graph has changed.*\n-%.*\n\+%"):
        testing.assert_unchanged(lower(changed, *inputs(10)).graph, file)


def test_each_product(lower, each_product):
    graph = lower(lambda *a: torch_npu.npu_moe_re_routing(*a, idx_type=1)[2], *inputs(10)).graph
    assert graph.node_types["MoeReRouting"] == (1 if each_product == "950" else 2)


class Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x, counts):
        routed = torch.ops.npu.npu_moe_re_routing(self.linear(x).half(), counts)
        return torch.relu(routed[0]), routed[3]


def test_a_captured_graph_has_the_same_assertions(tmp_path, monkeypatch):
    counts = torch.tensor([[1, 2], [2, 1]])
    calls = [torch.randn(6, 4) for _ in range(3)]
    lowered = testing.lower(
        Step(), calls[0], counts, more_inputs=[(x, counts) for x in calls[1:]], mode="reduce-overhead"
    )
    testing.assert_equals_eager(lowered, rtol=1e-2, atol=1e-2)
    testing.assert_nodes(
        lowered.graph, **{"npu.npu_moe_re_routing.default": 1, "aten.relu_.default": 1, "aten.sort.default": 0}
    )
    with pytest.raises(AssertionError, match="aten.relu_.default: expected 2, found 1"):
        testing.assert_nodes(lowered.graph, **{"aten.relu_.default": 2})
    testing.assert_no_host_tensors(lowered.graph)  # relu_: torchair's passes have made it write in place
    monkeypatch.setenv(testing.UPDATE, "1")
    testing.assert_unchanged(lowered.graph, tmp_path / "step.txt")
    monkeypatch.delenv(testing.UPDATE)
    testing.assert_unchanged(lowered.graph, tmp_path / "step.txt")
    assert "npu.npu_moe_re_routing.default(" in (tmp_path / "step.txt").read_text()
    assert "<img" in lowered._repr_html_() and "1 npu.npu_moe_re_routing.default" in repr(lowered)


def test_the_dumps_of_a_captured_graph_are_read_and_compared(tmp_path):
    config = torchair.CompilerConfig()
    config.debug.graph_dump.type, config.debug.graph_dump.path = "py", str(tmp_path)
    x, counts = torch.randn(6, 4), torch.tensor([[1, 2], [2, 1]])
    lowered = testing.lower(Step(), x, counts, dynamic=True, mode="reduce-overhead", config=config)
    by_stage = {graph.stage: graph for graph in dumps.read(tmp_path)}
    optimized, in_memory = by_stage["optimized"], dumps.from_fx(lowered.graph.module)
    assert not diff(optimized, in_memory) and optimized.kind == "fx"
    changes = [change.after for node in diff(by_stage["original"], optimized).changed for change in node.changes]
    assert changes == ["aten.relu_.default"]
    (moe,) = dumps.summarise(optimized).moe
    assert moe.type == "npu.npu_moe_re_routing.default" and "in forward" in moe.source[0]
