"""What torchair lowers to other numbers: each entry is told, its node has the number by its document, and its remedy is right.

`evidence` computes the number of the node that torchair writes, from the document alone, with NumPy or the plain formula.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import pytest
import torch
import torchair
from torchair._ge_concrete_graph import auto_generated_ge_raw_ops as ge

import moe_graph
from moe_graph.converters import known
from moe_graph.engine import KernelError
from moe_graph.foundation import settings
from versions import need_torch

F = torch.nn.functional
MASKED = torch.tensor([[0.5, 1.0, 2.0], [-torch.inf] * 3])


@dataclass
class Example:
    """A call that an entry is about.

    `alone` is what the lowered node computes by its document; `remedy` the call as it should be written.
    """

    operator: str
    call: Callable
    arguments: tuple[Any, ...]
    node: str
    alone: Callable
    remedy: Callable
    remedy_is: Callable | None = None  # what the remedy must give, if not what the call gives in eager


def swap(a, b):
    t = a.clone()
    a.copy_(b)
    b.copy_(t)
    return None


def deviation_from_itself(x):
    """ReduceStdWithMean with each element as its own mean."""
    return np.sqrt(((x - x) ** 2).sum() / (x.size - 1))


def softmax_by_its_formula(x):
    with np.errstate(invalid="ignore"):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def nearest_by_sizes(x):
    """ResizeNearestNeighborV2 to floor(0.6 * size): row i is taken from floor(i * in / out)."""
    h, w = (int(np.floor(size * 0.6)) for size in x.shape[-2:])
    rows, columns = (np.arange(out) * size // out for size, out in zip(x.shape[-2:], (h, w)))
    return x[..., rows[:, None], columns]


def gelu_by_its_formula(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def quotient_by_a_rounded_number(x):
    """RealDiv of bfloat16 by 0.7 as a bfloat16, 0.69921875; NumPy has no bfloat16, so x are numbers that float32 divides exactly enough."""
    return torch.tensor(x / np.float32(0.69921875)).bfloat16().float().numpy()


def rounded_quotient(x):
    return (x.bfloat16() / 0.7).float()


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
EXAMPLES = [
    Example(
        "aten.std.correction",
        lambda x: x.std(),
        (X,),
        "ReduceStdWithMean",
        deviation_from_itself,
        lambda x: x.flatten().std(0),
    ),
    Example(
        "aten._safe_softmax.default",
        lambda x: torch.ops.aten._safe_softmax(x, -1),
        (MASKED,),
        "SoftmaxV2",
        softmax_by_its_formula,
        lambda x: torch.softmax(x, -1).masked_fill(x.max(-1, keepdim=True).values == -torch.inf, 0),
    ),
    Example(
        "aten._fft_c2c.default",
        lambda x: torch.view_as_real(torch.fft.ifft2(x)),
        (X,),
        "FFT2D",
        lambda x: np.stack([(f := np.fft.fft2(x) / 16).real, f.imag], -1),
        lambda x: (torch.view_as_real(torch.fft.fft2(x)) / 16) * torch.tensor([1.0, -1.0], device=x.device),
    ),
    Example(
        "aten.upsample_nearest2d.default",
        lambda x: F.interpolate(x, scale_factor=0.6),
        (torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8),),
        "ResizeNearestNeighborV2",
        nearest_by_sizes,
        lambda x: F.interpolate(x, size=(4, 4)),
        lambda x: F.interpolate(x, size=(4, 4)),
    ),
    Example(
        "aten.gelu.default",
        lambda x: F.gelu(x),
        (X * 3,),
        "Gelu",
        gelu_by_its_formula,
        lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    ),
    Example(
        "aten.reshape.default",
        lambda x: ((x.view(6, 4).t() * 3).t()).reshape(4, 6),
        (torch.arange(24.0).reshape(4, 6),),
        "Transpose",
        lambda x: (x.reshape(6, 4).T * 3).reshape(4, 6),  # the transposition back is lost
        lambda x: ((x.view(6, 4).t() * 3).contiguous().t()).reshape(4, 6),
        lambda x: x * 3,
    ),
    Example(
        "aten.div.Tensor",
        rounded_quotient,
        (torch.arange(1.0, 65.0),),
        "RealDiv",
        quotient_by_a_rounded_number,
        lambda x: (x.bfloat16().float() / 0.7).bfloat16().float(),
    ),
]
REFUSED = {
    "aten.replication_pad1d.default": (
        lambda x: F.pad(x, (1, 1), mode="replicate"),
        lambda x: F.pad(x[None], (1, 1), mode="replicate")[0],
        (X[0, 0],),
    ),
    "aten.index_select.default": (
        lambda x, i: x.index_select(0, i),
        lambda x, i: x.reshape(1).index_select(0, i).reshape(()),
        (torch.tensor(2.0), torch.tensor([0])),
    ),
    "aten.index_add.default": (
        lambda x, i: x.index_add(0, i, x.reshape(1)),
        lambda x, i: x.reshape(1).index_add(0, i, x.reshape(1)).reshape(()),
        (torch.tensor(2.0), torch.tensor([0])),
    ),
    "aten.new_empty_strided.default": (
        lambda x: x.new_empty_strided((2, 3), (7, 1)).zero_(),
        lambda x: x.new_empty(2, 7)[:, :3].zero_(),
        (X,),
    ),
}


def compiled(function, dynamic=False, **options):
    torch._dynamo.reset()
    known.forget()
    config = torchair.CompilerConfig()
    for name, value in options.items():
        setattr(config.experimental_config, name, value)
    backend = torchair.get_npu_backend(compiler_config=config)
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)


def run(function, *arguments, **options):
    """The result on the CPU, and what was told."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = compiled(function, **options)(*(x.clone().npu() for x in arguments))
    told = [str(w.message) for w in seen if issubclass(w.category, known.TorchairWarning)]
    return result.cpu() if isinstance(result, torch.Tensor) else result, told


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.operator)
def test_the_call_is_told_and_its_node_has_the_number(example, lowered):
    wanted = example.call(*example.arguments)
    got, told = run(example.call, *example.arguments)
    (message,) = told
    assert example.operator in message and "test_graph_known.py" in message and "Remedy: " in message
    assert example.node in lowered[-1].node_types
    assert not torch.allclose(got, wanted, rtol=0, atol=2e-4)  # the number is another
    alone = torch.as_tensor(example.alone(*(x.numpy() for x in example.arguments)), dtype=got.dtype)
    torch.testing.assert_close(got, alone, equal_nan=True)  # and it is the node's, by its document


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.operator)
def test_the_remedy_is_right_and_nothing_is_told(example):
    got, told = run(example.remedy, *example.arguments)
    wanted = (example.remedy_is or example.call)(*example.arguments)
    torch.testing.assert_close(got, wanted)
    assert not told


@pytest.mark.parametrize("operator", REFUSED)
def test_a_graph_that_cannot_run_is_told_and_its_remedy_runs(operator):
    call, remedy, arguments = REFUSED[operator]
    with pytest.warns(known.TorchairWarning, match=f"{operator}.*refused when it runs"), pytest.raises(KernelError):
        compiled(call)(*(x.npu() for x in arguments))
    got, told = run(remedy, *arguments)
    torch.testing.assert_close(got, remedy(*arguments))
    assert not told


def test_dropout_trains_and_a_mask_of_truth_values_is_told():
    x = torch.ones(4, 16).npu().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error", known.TorchairWarning)
        y = compiled(lambda x: F.dropout(x, 0.5))(x)
        y.sum().backward()
    assert torch.equal(x.grad, y) and set(y.unique().tolist()) == {0, 2}
    mask = torch.tensor([True, False] * 32).reshape(4, 16)
    got, told = run(lambda g, m: torch.ops.aten.native_dropout_backward(g, m, 2.0), torch.ones(4, 16), mask)
    assert len(told) == 1 and not torch.equal(got, mask * 2.0)
    got, told = run(lambda g, m: g * m * 2.0, torch.ones(4, 16), mask)
    assert not told and torch.equal(got, mask * 2.0)


def test_a_swap_is_told_and_right():
    """The copy between the two writes is gone: of the graph, which is values, the result is right, of its memory it is not."""
    a, b = torch.zeros(3).npu(), torch.ones(3).npu()
    with pytest.warns(known.TorchairWarning, match="copy_.*remove_noop_ops"):
        compiled(swap)(a, b)
    assert a.tolist() == [1, 1, 1] and b.tolist() == [0, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", known.TorchairWarning)
        compiled(swap, remove_noop_ops=False)(a, b)
    assert a.tolist() == [0, 0, 0] and b.tolist() == [1, 1, 1]


HEADS = torch.arange(2 * 5 * 12.0).reshape(2, 5, 12)


def scaled_by_heads(x):
    """[B, S, N * D] scaled as [B, N, S, D], as models write rotary positions."""
    heads = x.view(x.shape[0], x.shape[1], 3, 4).transpose(1, 2)
    return (heads * 2).transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_lost_transposition_is_told_and_the_remedies_are_right(dynamic):
    with pytest.warns(known.TorchairWarning, match="aten.reshape.default.*a transposition is lost"):
        got = compiled(scaled_by_heads, dynamic=dynamic)(HEADS.npu()).cpu()
    assert torch.equal(got, (HEADS * 2).view(2, 5, 3, 4).transpose(1, 2).reshape(2, 5, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error", known.TorchairWarning)
        got = compiled(scaled_by_heads, dynamic=dynamic, enable_view_optimize=False)(HEADS.npu())
        assert torch.equal(got.cpu(), HEADS * 2)
        got = compiled(
            lambda x: x.view(2, 5, 3, 4).transpose(1, 2).transpose(1, 2).reshape(2, 5, -1) * 2, dynamic=dynamic
        )(HEADS.npu())
        assert torch.equal(got.cpu(), HEADS * 2)


def halves(x):
    x.add_(1)
    return x[:, : x.shape[1] // 2]


def transposed(x):
    x.add_(1)
    return x.view(x.shape[1], -1).t()


def last(x):
    x.add_(1)
    return x[x.shape[0] - 1]


@pytest.mark.parametrize("function", [halves, transposed, last])
def test_a_view_of_a_written_input_is_told_where_it_is_wrong(function):
    x = torch.arange(24.0).reshape(4, 6)
    with pytest.warns(known.TorchairWarning, match="aten.copy_.default.*a view of the written input"):
        got = compiled(function, dynamic=True)(x.npu())
    assert not torch.equal(got.cpu(), function(x.clone()))

    def outside(x):
        function(x)
        return x.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error", known.TorchairWarning)
        assert torch.equal(compiled(function)(x.npu()).cpu(), function(x.clone()))
        wanted, on_device = x.clone(), x.npu()
        assert compiled(outside, dynamic=True)(on_device).item() == outside(wanted).item()
        assert torch.equal(on_device.cpu(), wanted)
        for right in (
            lambda x: x.add_(1)[:, 2:].t(),
            lambda x: x.add_(1).view(x.shape[1], -1),
            lambda x: (x + 1, x[:, : x.shape[1] // 2]),
        ):
            for g, w in zip(compiled(right, dynamic=True)(x.npu()), right(x.clone())):
                assert torch.equal(g.cpu(), w)


def gradient_in_steps(grad, x, mean, rstd):
    """What torchair writes: a batch norm's gradient over groups, of a variance and a product that each step rounds to x's type."""
    variance = (1 / (rstd * rstd) - 1e-5).float()[..., None]
    groups, upstream = (t.view(2, 4, -1).float() for t in (x, grad))
    normal = (groups - mean.float()[..., None]) * (variance + 1e-5).rsqrt()
    inner = upstream - upstream.mean(-1, True) - normal * (upstream * normal).mean(-1, True)
    return (inner * (variance + 1e-5).rsqrt()).view_as(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gradient_of_a_group_norm_in_steps_of_a_half_type_is_told(dtype):
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2, 8, 5, 3, generator=generator).to(dtype) for _ in range(2))
    mean, rstd = (torch.randn(2, 4, generator=generator).abs().add(0.3).to(dtype) for _ in range(2))

    def backward(grad, x, mean, rstd):
        return torch.ops.aten.native_group_norm_backward(grad, x, mean, rstd, None, 2, 8, 15, 4, [True, False, False])[
            0
        ]

    given = (grad, x, mean, rstd)
    with pytest.warns(known.TorchairWarning, match="aten.native_group_norm_backward.default.*step by step"):
        got = compiled(backward)(*(t.npu() for t in given)).cpu()
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(got.float(), gradient_in_steps(*given), rtol=unit, atol=unit)
    eager = backward(*(t.npu() for t in given)).cpu()
    torch.testing.assert_close(eager.float(), backward(*(t.float() for t in given)), rtol=unit, atol=unit)
    assert not torch.equal(got, eager)
    with warnings.catch_warnings():
        warnings.simplefilter("error", known.TorchairWarning)
        wide = compiled(lambda *given: backward(*(t.float() for t in given)).to(dtype))(*(t.npu() for t in given)).cpu()
    torch.testing.assert_close(wide.float(), backward(*(t.float() for t in given)), rtol=unit, atol=unit)


SHARED = {  # what shares memory in PyTorch without a gradient; with one torch makes a single view anew, and not one of several
    "aten.slice.Tensor": (lambda x: (y := x * 2, y[1:]), False),
    "aten.reshape.default": (lambda x: (y := x * 2, y.view(-1)), False),
    "aten.split.Tensor": (lambda x: (x * 2).chunk(2), True),
}


@pytest.mark.parametrize(("trains", "dynamic"), [(False, True), (True, False)])
@pytest.mark.parametrize("operator", SHARED)
def test_results_that_shared_memory_are_told(operator, trains, dynamic):
    function, with_gradient = SHARED[operator]
    x = torch.ones(4, 4).npu().requires_grad_(trains)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        first, second = compiled(function, dynamic=dynamic)(x)
    told = [w for w in seen if issubclass(w.category, known.TorchairWarning) and operator in str(w.message)]
    assert len(told) == (not trains or with_gradient)
    with torch.no_grad():
        first.detach().mul_(5)
    assert (second.unique().tolist() == [2]) == bool(told)
    assert [(y * 1).unique().tolist() for y in function(torch.ones(4, 4).npu())] == [[2], [2]]


def test_results_that_share_memory_here_alone_are_told():
    with pytest.warns(known.TorchairWarning, match="aten.copy.default.*a write into one is seen in the other"):
        first, second = compiled(lambda x: (y := x * 2, torch.empty_like(y).copy_(y)))(torch.ones(3).npu())
    first.mul_(5)
    assert second.tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    "returned",
    [
        lambda x: (x * 2, x[1:], x.t(), x),  # of inputs torchair makes views
        lambda x: (y := x * 2, y),
        lambda x: (y := x * 2, y.clone()),
        lambda x: (y := x * 2, y[1:].clone(), y.view(-1) + 1),
    ],
)
def test_results_that_share_memory_as_in_pytorch_are_not_told(returned):
    x = torch.arange(16.0).view(4, 4).npu()
    with warnings.catch_warnings():
        warnings.simplefilter("error", known.TorchairWarning)
        got = compiled(returned)(x)
    for g, w in zip(got, returned(x)):
        assert torch.equal(g, w)
        assert (g.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) == (
            w.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        )


@pytest.mark.parametrize("mode", ["reduce-overhead", "npugraph_ex"])
@pytest.mark.parametrize("remedy", [False, True])
def test_a_swap_that_is_captured_is_told(mode, remedy):
    torch._dynamo.reset()
    known.forget()
    a, b = torch.zeros(3).npu(), torch.ones(3).npu()
    if mode == "npugraph_ex":
        run = torch.compile(swap, backend=mode, fullgraph=True, options={"remove_noop_ops": False} if remedy else {})
    else:
        config = torchair.CompilerConfig()
        config.mode = mode
        config.experimental_config.remove_noop_ops = not remedy
        run = torch.compile(swap, backend=torchair.get_npu_backend(compiler_config=config), fullgraph=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run(a, b)
    told = [str(w.message) for w in seen if issubclass(w.category, known.TorchairWarning)]
    assert a.tolist() == [1, 1, 1] and b.tolist() == ([0, 0, 0] if remedy else [1, 1, 1])
    assert not told if remedy else len(told) == 1 and "aten.copy_.default" in told[0]


def test_multinomial_draws_without_replacement(lowered):
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0])
    for _ in range(3):
        got, told = run(lambda x: torch.multinomial(x, 4, replacement=True), weights)
        assert sorted(got.tolist()) == [0, 1, 2, 3] and len(told) == 1  # with replacement: one time in ten
    assert "MultinomialWithReplacement" in lowered[-1].node_types
    _, told = run(lambda x: torch.multinomial(x, 4, replacement=False), weights)
    assert not told


def test_batch_norm_in_training_exchanges_its_statistics(lowered):
    norm, x = torch.nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2
    on_device = torch.nn.BatchNorm2d(3).npu()
    wanted = norm(x)
    with pytest.warns(known.TorchairWarning, match="batch_norm.*exchanged"):
        got = compiled(on_device)(x.npu())
    torch.testing.assert_close(got.cpu(), wanted)
    mean = torch.tensor(x.numpy().mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(
        on_device.running_mean.cpu(), mean
    )  # BatchNormV3's save_mean, where PyTorch has its running_mean
    with warnings.catch_warnings():
        warnings.simplefilter("error", known.TorchairWarning)
        got = compiled(norm.eval().npu())(x.npu())
    torch.testing.assert_close(got.cpu(), norm.cpu()(x))


def test_places_of_a_pooling_are_told_where_they_are_read():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    with pytest.warns(known.TorchairWarning, match="max_pool2d_with_indices.*the places are the values"):
        values, places = compiled(lambda x: F.max_pool2d(x, 2, return_indices=True))(x.npu())
    assert torch.equal(places, values.long()) and torch.equal(values.cpu(), F.max_pool2d(x, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", known.TorchairWarning)
        on_device = x.npu().requires_grad_()
        compiled(lambda x: F.max_pool2d(x, 2))(x.npu())
        compiled(lambda x: F.max_pool2d(x, 2) ** 2)(on_device).sum().backward()
    wanted = x.clone().requires_grad_()
    (F.max_pool2d(wanted, 2) ** 2).sum().backward()
    assert torch.equal(on_device.grad.cpu(), wanted.grad)


# ---- how it is told ----


def test_it_is_told_once_for_a_line():
    with pytest.warns(known.TorchairWarning) as seen:
        compiled(lambda x: x.std() + x.std())(X.npu())
    assert len([w for w in seen if w.category is known.TorchairWarning]) == 1
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch._dynamo.reset()
        torch.compile(lambda x: x.std(), backend=torchair.get_npu_backend(), fullgraph=True)(X.npu())  # another line
    assert len([w for w in seen if w.category is known.TorchairWarning]) == 1


def test_a_switch_makes_it_an_error_and_one_silences_it():
    with (
        moe_graph.torchair_numbers("error"),
        pytest.raises(Exception, match="torchair lowers aten.std.correction") as error,
    ):
        compiled(lambda x: x.std())(X.npu())
    assert "TorchairError" in str(error.value)
    with moe_graph.torchair_numbers("silent"):
        assert run(lambda x: x.std(), X)[1] == []
    with (
        pytest.raises(ValueError, match="must be one of warn, error, silent, got 'loud'"),
        moe_graph.torchair_numbers("loud"),
    ):
        pass


@pytest.mark.parametrize("how", ["warn", "error", "silent", "loud"])
def test_the_environment_is_a_switch(how, monkeypatch):
    monkeypatch.setenv("MOE_GRAPH_TORCHAIR_NUMBERS", how)
    spec = importlib.util.spec_from_file_location("settings_of_another_process", settings.__file__)
    fresh = importlib.util.module_from_spec(
        spec
    )  # a reload would take from the settings of this process what was said in them
    spec.loader.exec_module(fresh)
    if how == "loud":
        with pytest.raises(
            ValueError, match="MOE_GRAPH_TORCHAIR_NUMBERS must be one of warn, error, silent, got 'loud'"
        ):
            fresh.torchair_numbers_are()
    else:
        assert fresh.torchair_numbers_are() == how


def test_attention_without_its_bias_is_told(lowered):
    """torchair's converter leaves pse out: what comes out is the attention without it."""
    need_torch(2, 13)
    query = torch.randn(1, 2, 4, 16, generator=torch.Generator().manual_seed(1)).half()
    pse = torch.linspace(-90, 90, 32).reshape(1, 2, 4, 4).half()

    def attend(query, pse):
        return torch.ops.npu.npu_fusion_attention(query, query, query, 2, "BNSD", pse=pse, scale=0.25)[0]

    got, told = run(attend, query, pse)
    (message,) = told
    assert "npu.npu_fusion_attention.default" in message and "without pse" in message
    assert "FlashAttentionScore" in lowered[-1].node_types
    without = torch.softmax(query.float() @ query.float().mT * 0.25, -1) @ query.float()
    torch.testing.assert_close(got.float(), without, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(attend(query.npu(), pse.npu()).cpu().float(), without, rtol=0, atol=0.05)


def pairs_turned(x, cos, sin):
    return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin


def halves_turned(x, cos, sin):
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


def of_sine(function):
    """The gradient of the sine, of results that all count 1."""

    def gradient(x, cos, sin):
        leaf = sin.clone().requires_grad_()
        (found,) = torch.autograd.grad(function(x, cos, leaf).sum(), leaf)
        return found

    return gradient


@pytest.mark.parametrize("of_gradient", [False, True])
def test_a_rotary_mode_that_is_not_lowered_is_told(of_gradient, lowered):
    need_torch(2, 13)
    given = [torch.randn(2, 3, 2, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    named = "npu_rotary_mul_backward" if of_gradient else "npu_rotary_mul"
    operator = getattr(torch.ops.npu, named)

    def call(x, cos, sin):
        if of_gradient:
            return operator(torch.ones_like(x), x, cos, sin, "interleave")[2]
        return operator(x, cos, sin, "interleave")

    got, told = run(call, *given)
    (message,) = told
    assert f"npu.{named}.default" in message and "the halves of x are turned" in message
    kind = "RotaryMulGrad" if of_gradient else "RotaryMul"
    assert kind in lowered[-1].node_types
    wrong, right = ((of_sine(f) if of_gradient else f)(*given) for f in (halves_turned, pairs_turned))
    torch.testing.assert_close(got, wrong)
    torch.testing.assert_close(call(*(x.npu() for x in given)).cpu(), right)
    if not of_gradient:
        got, told = run(pairs_turned, *given)
        torch.testing.assert_close(got, right)
        assert not told


def test_a_rotating_matrix_that_is_left_out_is_told(monkeypatch):
    """As torchair lowers for Ascend 950."""
    need_torch(2, 13)
    monkeypatch.setattr(torch.npu, "get_device_name", lambda: "Ascend950")
    generator = torch.Generator().manual_seed(0)
    x, cos, sin = (torch.randn(2, 3, 2, 16, generator=generator) for _ in range(3))
    rotate = torch.randn(16, 16, generator=generator)
    got, told = run(
        lambda x, cos, sin, rotate: torch.ops.npu.npu_rotary_mul(x, cos, sin, "half", rotate), x, cos, sin, rotate
    )
    (message,) = told
    assert "npu.npu_rotary_mul.default" in message and "not input @ rotate" in message
    torch.testing.assert_close(got, halves_turned(x, cos, sin))


@pytest.mark.parametrize(
    "name, tensors, numbers, argument, node_type",
    [
        ("npu_moe_distribute_combine", 5, ("group", 2, 0, 4), "shared_expert_x", "MoeDistributeCombine"),
        ("npu_fusion_attention_grad", 4, (2, "BNSD"), "pse", "FlashAttentionScoreGrad"),
    ],
)
def test_an_argument_that_is_left_out_is_told(name, tensors, numbers, argument, node_type):
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    operator = getattr(torch.ops.npu, name).default
    for given in (None, x):
        node = graph.call_function(operator, (*[x] * tensors, *numbers), {argument: given})
        known.forget()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            known.tell(node, {})
        assert [f"without {argument}" in str(w.message) for w in seen] == [True] * (given is not None)
    taken = inspect.signature(getattr(ge, node_type)).parameters
    assert argument not in taken  # GE's node has no input of that name, and the converter feeds no other
