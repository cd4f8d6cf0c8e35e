"""Random numbers and operators that change an input, through torchair and the host engine on the simulated device."""

from __future__ import annotations

import pytest
import torch
import torchair


def compiled(function):
    torch._dynamo.reset()
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    return torch.compile(function, backend=backend, dynamic=False, fullgraph=True)


DRAWING = {
    "rand": lambda x: torch.rand(400, device=x.device),
    "rand in bfloat16": lambda x: torch.rand(400, device=x.device, dtype=torch.bfloat16),
    "randn": lambda x: torch.randn(400, device=x.device),
    "randint": lambda x: torch.randint(9, (400,), device=x.device),
    "randperm": lambda x: torch.randperm(400, device=x.device),
    "bernoulli": lambda x: torch.bernoulli(x),
    "uniform_": lambda x: torch.empty_like(x).uniform_(0, 1),
    "multinomial": lambda x: torch.multinomial(x, 40),
    "dropout": lambda x: torch.nn.functional.dropout(x, 0.5),
}


@pytest.mark.parametrize("name", DRAWING)
def test_the_seed_repeats_a_run_and_runs_differ(name):
    x = torch.full((400,), 0.5).to("npu")
    graph = compiled(DRAWING[name])
    torch.npu.manual_seed(3)
    first, second = graph(x).cpu(), graph(x).cpu()
    torch.npu.manual_seed(3)
    graph = compiled(DRAWING[name])
    assert torch.equal(graph(x).cpu(), first)
    assert torch.equal(graph(x).cpu(), second)
    assert not torch.equal(first, second)
    eager = DRAWING[name](x).cpu()
    assert first.dtype == eager.dtype and first.shape == eager.shape
    assert abs(first.double().mean() - eager.double().mean()) < 3.5 * eager.double().std() * (2 / first.numel()) ** 0.5


def test_two_draws_of_one_graph_differ():
    a, b = compiled(lambda x: (torch.rand(50, device=x.device), torch.rand(50, device=x.device)))(
        torch.ones(1).to("npu")
    )
    assert not torch.equal(a.cpu(), b.cpu())


def test_the_gradient_of_dropout_uses_its_mask():
    x = torch.ones(300).to("npu").requires_grad_()
    y = compiled(lambda x: torch.nn.functional.dropout(x, 0.25) * 2)(x)
    y.sum().backward()
    assert torch.equal(y.detach().cpu(), x.grad.cpu())
    torch.testing.assert_close(y.detach().cpu().unique(), torch.tensor([0, 2 / 0.75]))


def place(x):
    return torch.ones(1, 1, dtype=torch.int32, device=x.device)


def test_an_operator_that_changes_its_input_does():
    x, update = torch.zeros(3, 4).to("npu"), torch.full((1, 4), 5.0).to("npu")
    expected = torch.tensor([0.0, 5, 0]).unsqueeze(1).expand(3, 4)
    unchanged = compiled(lambda x, u: torch.ops.npu.npu_scatter_nd_update(x, place(x), u))(x, update)
    assert torch.equal(unchanged.cpu(), expected) and not x.cpu().any()
    compiled(lambda x, u: torch.ops.npu.npu_scatter_nd_update_(x, place(x), u))(x, update)
    assert torch.equal(x.cpu(), expected)


def test_a_cache_is_updated_in_place():
    cache, update = torch.zeros(2, 6, 4).to("npu"), torch.ones(2, 1, 4).to("npu")
    positions = torch.tensor([4, 0], dtype=torch.int32).to("npu")
    step = compiled(lambda c, p, u: torch.ops.npu.scatter_update_(c, p, u, 1).sum())
    assert [step(cache, positions, update).item(), step(cache, positions + 1, update).item()] == [8, 16]
    assert cache.cpu()[:, :, 0].tolist() == [[0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]]


def test_embedding_bag():
    weight, indices = torch.randn(6, 4), torch.tensor([[0, 1], [5, 2]])
    bag = compiled(lambda w, i: torch.nn.functional.embedding_bag(i, w, mode="mean"))
    torch.testing.assert_close(bag(weight.to("npu"), indices.to("npu")).cpu(), weight[indices].mean(1))


@pytest.mark.parametrize("transform", [torch.fft.fft, torch.fft.fft2])
def test_fourier_transforms(transform):
    x = torch.randn(3, 4, 8, dtype=torch.complex64)
    torch.testing.assert_close(compiled(transform)(x.to("npu")).cpu(), transform(x))
