"""Losses, pooling and gradients that torchair lowers, compiled and against the CPU."""

from __future__ import annotations

import pytest
import torch
import torchair
from torch.nn import functional

BACKEND = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
aten = torch.ops.aten
X = torch.randn(2, 3, 8, 8)
W = torch.randn(4, 3, 3, 3)
BACKWARD = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True])

FORWARD = {
    "cross_entropy": (lambda x, t: functional.cross_entropy(x, t), torch.randn(4, 5), torch.tensor([0, 4, 2, -100])),
    "nll_loss": (
        lambda x, t: functional.nll_loss(x, t, reduction="sum"),
        torch.randn(4, 5),
        torch.tensor([0, 4, 2, 1]),
    ),
    "logsigmoid": (lambda x: functional.logsigmoid(x), X),
    "prelu": (lambda x, w: functional.prelu(x, w), X, torch.rand(3)),
    "max_pool2d": (lambda x: functional.max_pool2d(x, 3, 2, 1), X),
    "max_pool3d": (lambda x: functional.max_pool3d(x, 2), torch.randn(1, 2, 4, 4, 4)),
    "nan_to_num": (lambda x: torch.nan_to_num(x, 1.0, 2.0, 3.0), torch.tensor([float("nan"), float("inf"), -1.0])),
    "mean": (lambda x: x.mean((0, 2), dtype=torch.float32), X.half()),
    "group_norm_backward": (
        lambda g, x, m, r, w: aten.native_group_norm_backward(g, x, m, r, w, 2, 3, 64, 1, [True] * 3),
        torch.randn_like(X),
        X,
        X.mean((1, 2, 3)).view(2, 1),
        X.var((1, 2, 3)).rsqrt().view(2, 1),
        torch.rand(3),
    ),
    "convolution_backward": (
        lambda g, x, w: aten.convolution_backward(g, x, w, [4], *BACKWARD[1:]),
        torch.randn(2, 4, 8, 8),
        X,
        W,
    ),
    "adaptive_avg_pool2d_backward": (lambda g, x: aten._adaptive_avg_pool2d_backward(g, x), torch.randn(2, 3, 3, 5), X),
}


@pytest.mark.parametrize("name", FORWARD)
def test_compiled_is_the_cpus(name):
    function, *given = FORWARD[name]
    got = torch.compile(function, backend=BACKEND, dynamic=False)(*(x.npu() for x in given))
    expected = function(*given)
    flat = got if isinstance(got, (tuple, list)) else [got]
    torch.testing.assert_close([x.cpu() for x in flat], list(expected) if len(flat) > 1 else [expected])


NORMS = {
    "layer_norm without weight": lambda x, w, b, m, v: functional.layer_norm(x.transpose(1, 3), (3,)),
    "layer_norm": lambda x, w, b, m, v: functional.layer_norm(x.transpose(1, 3), (3,), w, b),
    "batch_norm in eval": lambda x, w, b, m, v: functional.batch_norm(x, m, v, w, b),
    "rms_norm": lambda x, w, b, m, v: functional.rms_norm(x.transpose(1, 3), (3,), w),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NORMS)
def test_gradients_of_norms_are_eagers_bit_by_bit(name, dtype):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator).to(dtype) for shape in (X.shape, 3, 3, 3)]
    grads = []
    for run in (lambda f: f, lambda f: torch.compile(f, backend=BACKEND, dynamic=False)):
        x, w, b, mean = (t.npu().requires_grad_() for t in given)
        y = run(NORMS[name])(x, w, b, mean.detach(), mean.detach().abs() + 1)
        y.backward(torch.ones_like(y) + y.detach())
        grads.append([y.detach(), *(t.grad for t in (x, w, b) if t.grad is not None)])
    for eager, graph in zip(*grads):
        assert torch.equal(eager, graph)


def test_a_step_of_training_is_the_cpus():
    """Convolution, prelu, max_pool2d, log-sigmoid and cross_entropy, forward and backward."""
    slope = torch.rand(4)
    target = torch.tensor([1, 3])

    def loss(x, w, s, t):
        y = functional.prelu(functional.conv2d(x, w, padding=1), s)
        y = functional.logsigmoid(functional.max_pool2d(y, 2))
        return functional.cross_entropy(y.flatten(2).mean(2), t)

    def gradients(device, function):
        given = [x.detach().to(device).requires_grad_() for x in (X, W, slope)]
        function(*given, target.to(device)).backward()
        return [x.grad.cpu() for x in given]

    compiled = gradients("npu", torch.compile(loss, backend=BACKEND, dynamic=False))
    for got, expected in zip(compiled, gradients("cpu", loss)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
