"""Operators of training that torchair does not lower, and their gradients, by NumPy from their documents; gradients by float64 autograd of
the plain formula."""

import numpy as np
import pytest
import torch
import torch_npu

from versions import need_torch

RNG = np.random.default_rng(0)


def random(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32)).to(dtype)


def check(function, formula, inputs, grads, tolerance):
    """`function` on the device and `formula` in float64 of the same inputs: results and the gradients of all inputs."""
    ours = [x.npu().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    found, wanted = function(*ours), formula(*exact)
    torch.autograd.backward([y for y in found if y.requires_grad], [g.npu() for g in grads])
    torch.autograd.backward(wanted[: len(grads)], [g.double() for g in grads])
    differentiable = [y for y in found if y.requires_grad] + [y for y in found if not y.requires_grad]
    for y, x in zip(differentiable, wanted):
        torch.testing.assert_close(y.cpu().double(), x, **tolerance)
    for y, x in zip(ours, exact):
        torch.testing.assert_close(y.grad.cpu().double(), x.grad, **tolerance)


def normalized(x, axes):
    mean = x.mean(axes, keepdim=True)
    rstd = (((x - mean) ** 2).mean(axes, keepdim=True) + 1e-5) ** -0.5
    return (x - mean) * rstd, mean, rstd


EXACT = dict(rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_layer_norm(dtype):
    def formula(x1, x2, gamma, beta):
        y, mean, rstd = normalized(x1 + x2, -1)
        return y * gamma + beta, x1 + x2, mean, rstd

    inputs = [random(3, 4, 8, dtype=dtype) for _ in range(2)] + [random(8, dtype=dtype) for _ in range(2)]
    grads = [random(3, 4, 8, dtype=dtype) for _ in range(2)]
    check(
        lambda *x: torch_npu.npu_add_layer_norm(*x, 1e-5, True),
        formula,
        inputs,
        grads,
        EXACT if dtype == torch.float32 else dict(rtol=2**-6, atol=2**-4),
    )
    mixed = torch_npu.npu_add_layer_norm(
        inputs[0].half().npu(), inputs[1].float().npu(), *(x.npu() for x in inputs[2:])
    )
    assert [y.dtype for y in mixed] == [torch.float32] * 4 and mixed[1].shape == (3, 4, 1)


def test_deep_norm():
    def formula(x, gx, beta, gamma):
        y, mean, rstd = normalized(0.3 * x + gx, (-2, -1))
        return y * gamma + beta, mean, rstd

    inputs = [random(3, 4, 8), random(3, 4, 8), random(4, 8), random(4, 8)]
    check(lambda *x: torch_npu.npu_deep_norm(*x, 0.3, 1e-5), formula, inputs, [random(3, 4, 8)], EXACT)


def test_group_norm_swish():
    def formula(x, weight, bias):
        y, mean, rstd = normalized(x.reshape(2, 3, -1), -1)
        y = y.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
        return y * torch.sigmoid(1.5 * y), mean.squeeze(-1), rstd.squeeze(-1)

    inputs = [random(2, 6, 3, 2), random(6), random(6)]
    check(
        lambda x, w, b: torch_npu.npu_group_norm_swish(x, 3, w, b, eps=1e-5, swish_scale=1.5),
        formula,
        inputs,
        [random(2, 6, 3, 2)],
        EXACT,
    )
    with pytest.raises(RuntimeError, match="num_groups must be a divisor of C = 6, got 4"):
        torch_npu.npu_group_norm_swish(inputs[0].npu(), 4, inputs[1].npu(), inputs[2].npu())


def test_gather_sparse_index():
    x, index = random(5, 3), torch.tensor([[4, 0], [4, 2]])
    ours = x.npu().requires_grad_()
    found = torch_npu.npu_gather_sparse_index(ours, index.npu())
    grad = random(2, 2, 3)
    found.backward(grad.npu())
    expected = np.zeros((5, 3), np.float32)
    for i in range(2):
        for j in range(2):
            assert torch.equal(found[i, j].cpu(), x[index[i, j]])
            expected[index[i, j]] += grad[i, j].numpy()
    torch.testing.assert_close(ours.grad.cpu(), torch.from_numpy(expected))
    with pytest.raises(RuntimeError, match="index must be from 0 to 4, got from 0 to 5"):
        torch_npu.npu_gather_sparse_index(x.npu(), torch.tensor([0, 5]).npu())


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_mul(approximate):
    x = random(3, 8).half()
    one, two = x.double().chunk(2, -1)
    inner = (
        torch.erf(one / 2**0.5) if approximate == "none" else torch.tanh((2 / np.pi) ** 0.5 * (one + 0.044715 * one**3))
    )
    found = torch_npu.npu_gelu_mul(x.npu(), approximate=approximate).cpu()
    torch.testing.assert_close(found, (0.5 * one * (1 + inner) * two).half(), rtol=2**-10, atol=1e-6)


def test_attn_softmax():
    scores, grad, values = random(2, 3, 5), random(2, 3, 4), random(2, 5, 4)
    exact = scores.double().requires_grad_()
    probabilities = exact.exp() / exact.exp().sum(-1, keepdim=True)
    (probabilities @ values.double()).backward(grad.double())
    ours = scores.npu()
    torch_npu.npu_attn_softmax_(ours)
    torch.testing.assert_close(ours.cpu().double(), probabilities.detach(), rtol=1e-5, atol=1e-6)
    torch_npu.npu_attn_softmax_backward_(ours, grad.npu(), values.npu())
    torch.testing.assert_close(ours.cpu().double(), exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts, gamma", [(3, True), (2, False)])
def test_mhc_pre(parts, gamma):
    need_torch(2, 13)  # 2.8 has no gradient of it
    n, width = 4, 8
    size = 2 * n + (n * n if parts == 3 else 0)
    x = random(3, n, width, dtype=torch.float16)
    inputs = [x, random(size, n * width) / 5, random(parts), random(size)] + [random(n, width)] * gamma
    ours = [t.npu().requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    found = torch_npu.npu_mhc_pre(*ours[:4], gamma=ours[4] if gamma else None, out_flag=1)
    rows = exact[0].reshape(3, n * width)
    inverse = ((rows**2).mean(-1) + 1e-6) ** -0.5
    mixed = (rows * exact[4].flatten() if gamma else rows) @ exact[1].T
    z = (mixed * inverse[:, None]).split([n, n, n * n][:parts], -1)
    z = [part * a + b for part, a, b in zip(z, exact[2], exact[3].split([n, n, n * n][:parts]))]
    pre, post = torch.sigmoid(z[0]) + 1e-6, 2 * torch.sigmoid(z[1])
    wanted = [(pre[..., None] * exact[0]).sum(1), post]
    wanted += [z[2].view(3, n, n)] if parts == 3 else [torch.zeros(1, dtype=torch.float64)]
    tolerance = dict(rtol=2e-3, atol=2e-3)
    for y, expected in zip(found, [*wanted, inverse, mixed, pre]):
        torch.testing.assert_close(y.cpu().double(), expected, **tolerance)
    grads = [random(*y.shape) for y in wanted[: 2 + (parts == 3)]]
    torch.autograd.backward(list(found[: len(grads)]), [g.to(y.dtype).npu() for g, y in zip(grads, found)])
    torch.autograd.backward(wanted[: len(grads)], [g.double() for g in grads])
    for y, expected in zip(ours, exact):
        torch.testing.assert_close(y.grad.cpu().double(), expected.grad, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("mixes", [True, False])
def test_mhc_post(mixes):
    need_torch(2, 13)  # 2.8 has no gradient of it
    x, out, post = random(3, 4, 8, dtype=torch.float16), random(3, 8, dtype=torch.float16), random(3, 4)
    res = random(3, 4, 4) if mixes else None
    given = [x, out, post] + [res] * mixes
    ours, exact = [t.npu().requires_grad_() for t in given], [t.double().requires_grad_() for t in given]
    y = torch_npu.npu_mhc_post(ours[0], ours[3] if mixes else None, *ours[1:3])
    rows = []
    for j in range(4):
        kept = sum(exact[3][:, i, j, None] * exact[0][:, i] for i in range(4)) if mixes else exact[0][:, j]
        rows.append(kept + exact[2][:, j, None] * exact[1])
    wanted, grad = torch.stack(rows, 1), random(3, 4, 8, dtype=torch.float16)
    torch.testing.assert_close(y.cpu().double(), wanted, rtol=2e-3, atol=2e-3)
    y.backward(grad.npu())
    wanted.backward(grad.double())
    for found, expected in zip(ours, exact):
        torch.testing.assert_close(found.grad.cpu().double(), expected.grad, rtol=2e-3, atol=2e-3)
