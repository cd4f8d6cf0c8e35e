"""npu_swiglu and npu_swiglu_backward on CPU tensors, against loops from the formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import moe_graph  # noqa: F401  registers the operators
from versions import opcheck

swiglu, backward = torch.ops.npu.npu_swiglu, torch.ops.npu.npu_swiglu_backward
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = st.sampled_from(list(TOLERANCE))


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def by_loops(x, function):
    """function(a, b) of the pairs of the last dimension's halves."""
    half = x.shape[-1] // 2
    rows = x.double().reshape(-1, 2 * half).tolist()
    results = [[function(row[j], row[half + j], i, j) for j in range(half)] for i, row in enumerate(rows)]
    return results


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=0, max_size=3),
    st.integers(0, 4),
    DTYPES,
    st.integers(0, 3),
    st.integers(0, 99),
)
def test_forward_and_backward(leading, half, dtype, position, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (3 * torch.randn(*leading, 2 * half, generator=generator)).to(dtype)
    grad = torch.randn(*leading, half, generator=generator).to(dtype)
    rows = grad.double().reshape(-1, half).tolist() if half else []
    expected = by_loops(x, lambda a, b, i, j: a * sigmoid(a) * b) if half else []
    left = by_loops(x, lambda a, b, i, j: rows[i][j] * b * sigmoid(a) * (1 + a * (1 - sigmoid(a)))) if half else []
    right = by_loops(x, lambda a, b, i, j: rows[i][j] * a * sigmoid(a)) if half else []

    dim = position % x.dim()
    moved, moved_grad = x.movedim(-1, dim).contiguous(), grad.movedim(-1, dim).contiguous()
    y, dx = swiglu(moved, dim).movedim(dim, -1), backward(moved_grad, moved, dim - x.dim()).movedim(dim, -1)
    for result, wanted, shape in ((y, expected, grad.shape), (dx, [a + b for a, b in zip(left, right)], x.shape)):
        assert (result.shape, result.dtype) == (shape, dtype)
        wanted = torch.tensor(wanted, dtype=torch.float64).reshape(shape)
        torch.testing.assert_close(result.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    with FakeTensorMode() as mode:
        fakes = (
            swiglu(mode.from_tensor(moved), dim),
            backward(mode.from_tensor(moved_grad), mode.from_tensor(moved), dim),
        )
    assert [f.shape for f in fakes] == [y.movedim(-1, dim).shape, moved.shape]
    assert {f.dtype for f in fakes} == {dtype}


def test_gradient_is_the_backward_operator():
    x, upstream = torch.randn(5, 8, requires_grad=True), torch.randn(5, 4)
    (grad,) = torch.autograd.grad(swiglu(x), x, upstream)
    torch.testing.assert_close(grad, backward(upstream, x.detach()))


def test_second_gradient():
    x = torch.randn(3, 4, requires_grad=True)
    assert torch.autograd.gradgradcheck(swiglu, x, eps=1e-2, atol=1e-2, rtol=1e-2)
    assert torch.autograd.gradcheck(
        backward, (torch.randn(3, 2, requires_grad=True), x), eps=1e-2, atol=1e-2, rtol=1e-2
    )


@pytest.mark.parametrize("operator", ["forward", "backward"])
def test_opcheck(operator):
    x, grad = torch.randn(3, 4, requires_grad=True), torch.randn(3, 2)
    if operator == "forward":
        opcheck(swiglu.default, (x, -1))
    else:
        opcheck(backward.default, (grad, x, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3),), r"npu_swiglu: input must be of even size along dim -1, got shape \(2, 3\)"),
        ((torch.zeros(2, 4), 2), "npu_swiglu: dim must be from -2 to 1, got 2"),
        ((torch.zeros(2, 4, dtype=torch.int8),), "npu_swiglu: input must be of dtype .*, got torch.int8"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        swiglu(*arguments)


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (
            torch.zeros(2, 4),
            r"npu_swiglu_backward: grad_output must be of the result's shape \(2, 2\), got shape \(2, 4\)",
        ),
        (torch.zeros(2, 2).half(), "grad_output must be of dtype torch.float32, got torch.float16"),
        (torch.zeros(4), "grad_output must be of shape that of npu_swiglu's result"),
    ],
)
def test_backward_errors(grad, message):
    with pytest.raises(ValueError, match=message):
        backward(grad, torch.zeros(2, 4))
