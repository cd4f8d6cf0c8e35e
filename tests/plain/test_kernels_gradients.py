"""Losses, pooling, normalisation and gradients of the host engine: against loops over the documents' formulas, and against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from moe_graph.engine import kernels, registry

assert kernels  # importing them registers them


def run(ge_type, *inputs, **attributes):
    before = [x.clone() for x in inputs]
    result = registry.get(ge_type).function(*inputs, **attributes)
    torch.testing.assert_close(list(inputs), before, rtol=0, atol=0, equal_nan=True, msg=f"{ge_type} changed an input")
    return result


def same(got, expected, **tolerance):
    torch.testing.assert_close(got, torch.as_tensor(np.asarray(expected), dtype=got.dtype), **tolerance)


def shape(*sizes):
    return torch.tensor(sizes, dtype=torch.int32)


TARGET = torch.tensor([2, 0, 7, 1], dtype=torch.int32)  # 7 is ignored
WEIGHT = torch.tensor([0.5, 2.0, 1.5])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_nll_loss_is_the_documents(reduction, weighted):
    x = torch.log_softmax(torch.randn(4, 3), 1)
    weights = [(WEIGHT[t].item() if weighted else 1.0) if t != 7 else 0.0 for t in TARGET.tolist()]
    losses = [-w * x[n, t].item() if w else 0.0 for n, (t, w) in enumerate(zip(TARGET.tolist(), weights))]
    expected = {"none": losses, "sum": sum(losses), "mean": sum(losses) / sum(weights)}[reduction]
    fed = (x, TARGET, WEIGHT) if weighted else (x, TARGET)
    y, total = run("NLLLoss", *fed, reduction=reduction, ignore_index=7)
    same(y, expected)
    same(total, sum(weights))

    grad = torch.randn(4) if reduction == "none" else torch.randn(())
    expected = np.zeros((4, 3))
    for n, (t, w) in enumerate(zip(TARGET.tolist(), weights)):
        if w:
            expected[n, t] = -w * (grad[n] if reduction == "none" else grad).item()
            expected[n, t] /= sum(weights) if reduction == "mean" else 1
    weight = WEIGHT if weighted else torch.ones(3)
    same(run("NLLLossGrad", x, grad, TARGET, weight, total, reduction=reduction, ignore_index=7), expected)


def test_nll_loss_of_one_row_and_of_no_class():
    x = torch.tensor([-1.0, -2.0, -3.0])
    y, _ = run("NLLLoss", x, torch.tensor(1), reduction="none")
    assert y.item() == 2 and y.shape == ()
    assert torch.isnan(run("NLLLoss", x[None], torch.tensor([-100]))[0])  # 0 / 0, as PyTorch gives it
    for target in (3, -1):
        with pytest.raises(ValueError, match="target must be from 0 to 2"):
            run("NLLLoss", x[None], torch.tensor([target]))
    with pytest.raises(ValueError, match="reduction"):
        run("NLLLoss", x[None], torch.tensor([0]), reduction="median")


def test_a_loss_whose_class_is_impossible_is_ignored():
    x = torch.tensor([[0.0, float("-inf")], [-1.0, -2.0]])
    assert run("NLLLoss", x, torch.tensor([1, 0]), ignore_index=1)[0].item() == 1


def test_log_sigmoid_does_not_overflow():
    x = torch.tensor([-200.0, -1.0, 0.0, 1.0, 200.0])
    same(run("LogSigmoid", x), -np.logaddexp(0, -x.double().numpy()))
    same(run("LogSigmoidGrad", torch.full((5,), 2.0), x), 2 / (1 + np.exp(x.double().numpy())))


@pytest.mark.parametrize("slopes", [(1,), (3,), (1, 3, 1, 1), (3, 1, 1)])
def test_p_relu(slopes):
    x, weight = torch.randn(2, 3, 4, 5), torch.rand(slopes)
    flat = weight.reshape(-1).tolist() * (3 // weight.numel())
    expected = np.array([[np.where(c > 0, c, s * c) for c, s in zip(n, flat)] for n in x.numpy()])
    same(run("PRelu", x, weight), expected)
    grad = torch.randn_like(x)
    dx, da = run("PReluGrad", grad, x, weight)
    sums = [(grad * x.clamp(max=0))[:, c].sum().item() for c in range(3)]
    same(da, np.reshape(sums if weight.numel() == 3 else [sum(sums)], slopes))
    same(
        dx,
        np.array([[np.where(c > 0, g, s * g) for c, g, s in zip(n, m, flat)] for n, m in zip(x.numpy(), grad.numpy())]),
    )


def windows(x, kernel, stride, pad, dilation):
    """Maximum and flat place of each window, by loops; the first of equals, a NaN before all."""
    _, _, height, width = x.shape
    count = [(size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for size in (height, width)]
    values, places = np.zeros((*x.shape[:2], *count), np.float32), np.zeros((*x.shape[:2], *count), np.int64)
    for n, c, i, j in np.ndindex(*values.shape):
        rows = [i * stride - pad + k * dilation for k in range(kernel)]
        columns = [j * stride - pad + k * dilation for k in range(kernel)]
        seen = [(r, q) for r in rows for q in columns if 0 <= r < height and 0 <= q < width]
        best = max(seen, key=lambda place: (np.isnan(x[(n, c, *place)]), x[(n, c, *place)]))
        values[n, c, i, j], places[n, c, i, j] = x[(n, c, *best)], best[0] * width + best[1]
    return values, places


@pytest.mark.parametrize("version", ["V1", "V3"])
def test_max_pool_with_argmax(version):
    x = torch.randperm(2 * 3 * 7 * 9).float().view(2, 3, 7, 9)
    settings = {"ksize": [3, 3], "strides": [2, 2], "pads": [1, 1], "dilation": [2, 2]}
    if version == "V1":
        settings = {name: [1, *values, 1] for name, values in settings.items()}
    values, places = run(f"MaxPoolWithArgmax{version}", x, **settings)
    expected, where = windows(x.numpy(), 3, 2, 1, 2)
    same(values, expected)
    assert places.dtype == torch.int32 and np.array_equal(places.numpy(), where)

    grad = torch.randn_like(values)
    gradient = np.zeros((2, 3, 63))
    for n, c, i, j in np.ndindex(*values.shape):
        gradient[n, c, where[n, c, i, j]] += grad[n, c, i, j].item()
    same(run(f"MaxPoolGradWithArgmax{version}", x, grad, places, **settings), gradient.reshape(x.shape))
    with pytest.raises(ValueError, match="argmax must be from 0 to 62"):
        run(f"MaxPoolGradWithArgmax{version}", x, grad, places + 63, **settings)


def test_max_pool_3d_with_argmax():
    x = torch.randperm(2 * 4 * 5 * 6).float().view(1, 2, 4, 5, 6)
    settings = {"ksize": [2, 2, 2], "strides": [2, 2, 2], "pads": [0, 0, 0], "ceil_mode": True}
    values, places = run("MaxPool3DWithArgmaxV2", x, **settings, dtype=9)
    assert values.shape == (1, 2, 2, 3, 3) and places.dtype == torch.int64
    for place in np.ndindex(*values.shape):
        n, c, d, h, w = place
        block = x[n, c, 2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        assert values[place] == block.max() == x[n, c].reshape(-1)[places[place]]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("groups, pad, dilation", [(1, 0, 1), (2, 1, 2)])
def test_convolution_gradients_are_autograds(dimensions, groups, pad, dilation):
    x = torch.randn(2, 4, *[7] * dimensions, requires_grad=True)
    weight = torch.randn(6, 4 // groups, *[3] * dimensions, requires_grad=True)
    function = functional.conv2d if dimensions == 2 else functional.conv3d
    y = function(x, weight, None, 2, pad, dilation, groups)
    grad = torch.randn_like(y)
    y.backward(grad)
    settings = {
        "strides": [1, 1, *[2] * dimensions],
        "pads": [pad] * 2 * dimensions,
        "dilations": [1, 1, *[dilation] * dimensions],
        "groups": groups,
        "data_format": "NCHW" if dimensions == 2 else "NCDHW",
    }
    x, weight, dx, dw = x.detach(), weight.detach(), x.grad, weight.grad
    same(run(f"Conv{dimensions}DBackpropInput", shape(*x.shape), weight, grad, **settings), dx)
    same(run(f"Conv{dimensions}DBackpropFilter", x, shape(*weight.shape), grad, **settings), dw)
    with pytest.raises(NotImplementedError, match="the same on both sides"):
        run(
            f"Conv{dimensions}DBackpropInput",
            shape(*x.shape),
            weight,
            grad,
            **{**settings, "pads": [0, 1] * dimensions},
        )


def test_batch_norm_gradient_is_the_documents():
    x, dy, weight = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5), torch.tensor([0.5, 2.0])
    running = torch.tensor([0.1, -0.2]), torch.tensor([0.5, 1.5])
    mean = x.mean((0, 2, 3))
    rstd = (x.var((0, 2, 3), correction=0) + 1e-5).rsqrt()
    for training in (True, False):
        m, r = (mean, rstd) if training else (running[0], (running[1] + 1e-5).rsqrt())
        dx, dweight, dbias = run(
            "BatchNormGradV3", dy, x, weight, *running, mean, rstd, is_training=training, epsilon=1e-5
        )
        for c in range(2):
            g, v, n = dy[:, c].double(), (x[:, c].double() - m[c]) * r[c], 60
            same(dbias[c], g.sum())
            same(dweight[c], (g * v).sum())
            inner = (n * g - g.sum() - v * (g * v).sum()) / n if training else g
            same(dx[:, c], weight[c] * r[c] * inner, rtol=1e-4, atol=1e-5)


def test_group_norm_and_its_gradient():
    x, gamma, beta = (
        torch.randn(2, 4, 5, requires_grad=True),
        torch.rand(4, requires_grad=True),
        torch.rand(4, requires_grad=True),
    )
    y, mean, rstd = run("GroupNormV2", x.detach(), gamma.detach(), beta.detach(), num_groups=2, eps=1e-3)
    groups = x.detach().double().view(2, 2, 10)
    same(mean, groups.mean(2))
    same(rstd, 1 / (groups.var(2, correction=0) + 1e-3).sqrt())
    expected = functional.group_norm(x, 2, gamma, beta, 1e-3)
    same(y, expected.detach())
    dy = torch.randn_like(y)
    expected.backward(dy)
    gradients = run("GroupNormGrad", dy, mean, rstd, x.detach(), gamma.detach(), num_groups=2)
    for got, like in zip(gradients, (x, gamma, beta)):
        same(got, like.grad, rtol=1e-4, atol=1e-5)


def test_batch_norm_over_devices_is_that_of_the_whole_batch():
    x, dy, weight = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.rand(3)
    mean, rstd = x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + 1e-5).rsqrt()
    sum_dy = dy.sum((0, 2, 3))
    sum_dy_xmu, for_weight = run("SyncBatchNormBackwardReduce", sum_dy, (dy * x).sum((0, 2, 3)), mean, rstd)
    expanded = [v.view(1, 3, 1, 1).expand_as(x) for v in (mean, rstd, weight, sum_dy / 16, sum_dy_xmu / 16)]
    dx = run("SyncBatchNormBackwardElemt", dy, x, *expanded)
    expected = torch.ops.aten.native_batch_norm_backward(dy, x, weight, None, None, mean, rstd, True, 1e-5, [True] * 3)
    same(for_weight, expected[1], rtol=1e-4, atol=1e-4)
    same(dx, expected[0], rtol=1e-4, atol=1e-5)


def test_adaptive_average_gradient():
    grad = torch.randn(2, 3, 2, 3)
    expected = np.zeros((2, 3, 5, 7))
    for n, c, i, j in np.ndindex(2, 3, 2, 3):
        rows = range(i * 5 // 2, -(-(i + 1) * 5 // 2))
        columns = range(j * 7 // 3, -(-(j + 1) * 7 // 3))
        for r, q in ((r, q) for r in rows for q in columns):
            expected[n, c, r, q] += grad[n, c, i, j].item() / (len(rows) * len(columns))
    same(run("AdaptiveAvgPool2dGrad", grad, orig_input_shape=[2, 3, 5, 7]), expected)


def test_nan_to_num():
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 2.0])
    assert run("NanToNum", x, nan=1.0, posinf=5.0, neginf=-7.0).tolist() == [1, 5, -7, 2]


def test_mean_with_cast():
    x = torch.tensor([[1, 2], [4, 8]], dtype=torch.int32)
    axes = torch.tensor([1])
    assert run("ReduceMeanWithCast", x, axes, dtype=0).tolist() == [1.5, 6]
    half = torch.full((1, 4096), 1.0).half()
    assert run("ReduceMeanWithCast", half, axes, dtype=1).item() == 1  # summed in float32
    assert run("ReduceMeanWithCast", half, axes).dtype == torch.float16
    assert torch.equal(run("ReduceMeanWithCast", half, axes[:0], dtype=0), half.float())


@pytest.mark.parametrize("dim", [(), (0,), (0, 2), (-1,)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_standard_deviation_and_mean(dim, keepdim):
    x = torch.randn(3, 4, 5)
    std, mean = run("ReduceStdV2", x, dim=list(dim), correction=1, keepdim=keepdim)
    axes = dim or None
    same(std, x.double().numpy().std(axis=axes, ddof=1, keepdims=keepdim))
    same(mean, x.double().numpy().mean(axis=axes, keepdims=keepdim))
    assert torch.isinf(
        run("ReduceStdV2", x, dim=[0], correction=3)[0]
    ).all()  # divided by 0, as the document's max(0, N - 3)


def test_product_of_attributes():
    x = torch.tensor([[2, 3], [4, 5]])
    assert run("ReduceProdD", x, axes=[0]).tolist() == [8, 15]
    assert run("ReduceProdD", x, axes=[0, 1], keep_dims=True).tolist() == [[120]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_rounded_once(dtype):
    x, grad = torch.randn(2, 3, 6, 6).to(dtype), torch.randn(2, 4, 4, 4).to(dtype)
    weight = torch.randn(4, 3, 3, 3).to(dtype)
    settings = {"strides": [1] * 4, "pads": [0] * 4, "data_format": "NCHW"}
    for name, fed, place in (
        ("Conv2DBackpropInput", (shape(*x.shape), weight, grad), None),
        ("Conv2DBackpropFilter", (x, shape(*weight.shape), grad), None),
        ("LogSigmoid", (x,), None),
        ("LogSigmoidGrad", (x, x * 2), None),
        ("PReluGrad", (x, x, weight[0, :, 0, 0]), 1),
    ):
        attributes = settings if name.startswith("Conv") else {}
        wide = run(name, *(t.float() if t.dtype == dtype else t for t in fed), **attributes)
        got = run(name, *fed, **attributes)
        got, wide = (got, wide) if place is None else (got[place], wide[place])
        assert got.dtype == dtype and torch.equal(got, wide.to(dtype)), name
