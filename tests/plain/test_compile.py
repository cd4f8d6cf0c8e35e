"""torch.compile, torch.export and opcheck on CPU tensors."""

from __future__ import annotations

import pytest
import torch

import cases
import moe_graph
import reference
from versions import need, opcheck

operator = torch.ops.npu.npu_moe_re_routing.default


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


class Layer(torch.nn.Module):
    def forward(self, tokens, counts, scales):
        outputs = moe_graph.moe_re_routing(tokens * 2, counts, per_token_scales=scales)
        back = moe_graph.moe_un_routing(outputs.permute_tokens, counts)
        return (*outputs, back.tokens)


def call(count, ranks=4, experts=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, 6, generator=generator)
    return tokens, cases.make_counts(ranks, experts, count, seed=seed), torch.rand(count, generator=generator)


def check(outputs, tokens, counts, scales):
    reference.assert_matches(outputs[:4], tokens * 2, counts, scales)
    assert torch.equal(outputs[4], tokens * 2)


@pytest.mark.parametrize("arguments", [{}, {"idx_type": 1, "expert_token_num_type": 0}], ids=["native", "other modes"])
# opcheck itself computes with what it checks, and torch has no arithmetic for float8_e8m0fnu: its bytes stand in.
@pytest.mark.parametrize("scales", [None, "A", "A,S", "A,K/64,2 bytes"])
def test_opcheck(arguments, scales):
    tokens, counts = cases.make((11, 4), torch.int8), cases.make_counts(2, 3, 11)
    arguments = {**arguments, "per_token_scales": cases.make_scales(11, scales)}
    opcheck(operator, (tokens, counts), arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_with_gradients(dtype):
    tokens, counts = torch.randn(11, 4).to(dtype).requires_grad_(), cases.make_counts(2, 3, 11)
    opcheck(operator, (tokens, counts), {"per_token_scales": torch.rand(11, requires_grad=True)})


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_compilation_serves_every_token_count(backend):
    need("compiler.set_stance")
    compiled = torch.compile(Layer(), backend=backend, fullgraph=True, dynamic=True)
    check(compiled(*call(10)), *call(10))
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (2, 3, 100, 17):
            check(compiled(*call(count, seed=count)), *call(count, seed=count))


def test_no_guard_on_the_number_of_tokens():
    """With an A that has no hint, any comparison of A with a number would fail the compilation; 0 and 1 need no other one."""
    need("compiler.set_stance")
    tokens, counts, scales = call(10)
    torch._dynamo.decorators.mark_unbacked(tokens, 0)
    torch._dynamo.decorators.mark_unbacked(scales, 0)
    compiled = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    check(compiled(tokens, counts, scales), tokens, counts, scales)
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (0, 1, 2, 50):
            check(compiled(*call(count, seed=count)), *call(count, seed=count))


def test_gradients_through_a_compiled_layer():
    tokens, counts, scales = call(12)
    tokens.requires_grad_()

    def loss(tokens, counts):
        return moe_graph.moe_re_routing(tokens, counts, per_token_scales=scales).permute_tokens.pow(2).sum()

    torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)(tokens, counts).backward()
    assert torch.allclose(tokens.grad, 2 * tokens.detach())


def test_traced_graph_holds_the_operator_whole():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compile(Layer(), backend=backend, fullgraph=True)(*call(10))
    targets = [node.target for node in graphs[0].graph.nodes]
    assert targets.count(operator) + targets.count(torch.ops.npu.npu_moe_re_routing) == 2


def test_export():
    need("export.Dim")
    exported = torch.export.export(
        Layer(), call(10), dynamic_shapes=({0: torch.export.Dim("A", min=2)}, None, {0: torch.export.Dim("A", min=2)})
    )
    for count in (10, 31):
        check(exported.module()(*call(count)), *call(count))


def test_functional_transforms_see_one_operator():
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(Layer(), tracing_mode="symbolic")(*call(10))
    targets = [node.target for node in graph.graph.nodes]
    assert targets.count(operator) == 2 and torch.ops.aten.index_select.default not in targets


@pytest.mark.parametrize("requires_grad", [False, True])
def test_dynamo_does_not_compile_the_kernels_after_a_graph_break(requires_grad):
    """A compiled function that calls the operator eagerly: the Python frames of its kernels are executed, like C++ ones."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    @torch._dynamo.disable(recursive=False)
    def eagerly(tokens, counts):
        return operator(tokens, counts)[0]

    def function(tokens, counts):
        return eagerly(tokens + 1, counts) * 2

    tokens, counts = torch.randn(9, 3, requires_grad=requires_grad), cases.make_counts(2, 3, 9)
    outputs = torch.compile(function, backend=backend)(tokens, counts)
    assert [len(targets) for targets in graphs] == [1, 1]  # the sum, the product
    assert torch.equal(outputs, (operator(tokens, counts)[0] + 1) * 2)
    if requires_grad:
        outputs.sum().backward()
        assert torch.equal(tokens.grad, torch.full((9, 3), 2.0))
