"""Activations, products and routing of the layer that have one module each, against loops from their documents."""

import math

import pytest
import torch
import torch_npu
from test_operators_position import ONE_ROUNDING, random

from everywhere import check


def gelu(x: float, tanh: bool) -> float:
    if tanh:
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("approximate", [0, 1])
@pytest.mark.parametrize("left", [False, True])
def test_geglu(approximate, left):
    x = random(3, 8, 5)
    halves = x.double().chunk(2, 1)
    active, other = halves if left else halves[::-1]
    activated = torch.tensor([gelu(float(v), bool(approximate)) for v in active.flatten()], dtype=torch.float64)
    activated = activated.view(active.shape)
    expected = [(activated * other).bfloat16(), activated.bfloat16()]
    check(torch_npu.npu_geglu, [x, 1, approximate, left], expected, modes=("eager", "static"), **ONE_ROUNDING)


@pytest.mark.parametrize("approximate", [0, 1])
@pytest.mark.parametrize("left", [False, True])
def test_gradient_of_geglu(approximate, left):
    x, grad = random(3, 8, dtype=torch.float32), random(3, 4, dtype=torch.float32)
    leaf = x.double().requires_grad_()
    halves = leaf.chunk(2, -1)
    active, other = halves if left else halves[::-1]
    y = torch.nn.functional.gelu(active, approximate="tanh" if approximate else "none") * other
    (expected,) = torch.autograd.grad(y, leaf, grad.double())
    npu = x.npu().requires_grad_()
    (found,) = torch.autograd.grad(torch_npu.npu_geglu(npu, -1, approximate, left)[0], npu, grad.npu())
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("groups", [None, [2, 1]])
def test_clipped_swiglu(interleaved, groups):
    x = random(5, 8) * 6
    rows, expected = x.double(), torch.zeros(5, 4, dtype=torch.float64)
    for i in range(5 if groups is None else sum(groups)):
        for j in range(4):
            a, b = (rows[i, 2 * j], rows[i, 2 * j + 1]) if interleaved else (rows[i, j], rows[i, j + 4])
            a, b = min(float(a), 7.0), max(-7.0, min(float(b), 7.0))
            expected[i, j] = a / (1 + math.exp(-1.702 * a)) * (b + 1)
    options = dict(group_index=None if groups is None else torch.tensor(groups), interleaved=interleaved)
    check(torch_npu.npu_clipped_swiglu, [x], [expected.bfloat16()], options, modes=("eager", "static"), **ONE_ROUNDING)


@pytest.mark.parametrize("active", [2, 99])
def test_init_routing(active):
    tokens, k = 4, 3
    x, experts = random(tokens, 8), torch.randint(0, 5, (tokens, k), dtype=torch.int32)
    rows = torch.arange(tokens * k, dtype=torch.int32).view(k, tokens).t().contiguous()
    order = sorted(range(tokens * k), key=lambda i: int(experts.reshape(-1)[i]))
    sources = [int(rows.reshape(-1)[i]) for i in order]
    place = torch.zeros(tokens * k, dtype=torch.int32)
    for position, source in enumerate(sources):
        place[source] = position
    used = sources[: min(active, tokens) * k]
    expected = [x[[s % tokens for s in used]], place, experts.reshape(-1).sort(stable=True).values]
    check(torch_npu.npu_moe_init_routing, [x, rows, experts, active], expected)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_transpose_batchmatmul(swapped, parts):
    x, weight = random(2, 3, 16), random(2, 16, 32, seed=1)
    product = torch.stack([a.double() @ b.double() for a, b in zip(x, weight)])  # [B, M, N]
    expected = product.transpose(0, 1).reshape(3, -1)
    expected = expected.view(3, 2, 32) if parts == 1 else expected.view(3, parts, -1).transpose(0, 1)
    given = x.transpose(0, 1).contiguous() if swapped else x
    options = dict(perm_x1=[1, 0, 2] if swapped else [0, 1, 2], perm_x2=[0, 1, 2], perm_y=[1, 0, 2])
    options["batch_split_factor"] = parts
    check(torch_npu.npu_transpose_batchmatmul, [given, weight], [expected.bfloat16()], options, rtol=2**-7, atol=2**-5)


def test_transpose_batchmatmul_with_packed_scales():
    x, weight = random(2, 3, 16, dtype=torch.float16), random(2, 16, 32, dtype=torch.float16, seed=1)
    scales = torch.rand(64) * 4
    packed = torch.zeros(64, dtype=torch.int64)
    packed.view(torch.int32)[::2] = scales.view(torch.int32)
    product = torch.bmm(x.double(), weight.double()).transpose(0, 1).reshape(3, 1, 64)
    expected = (product * scales.double()).round().clamp(-128, 127).to(torch.int8)
    options = dict(scale=packed, perm_x1=[0, 1, 2], perm_x2=[0, 1, 2], perm_y=[1, 0, 2])
    check(torch_npu.npu_transpose_batchmatmul, [x, weight], [expected], options, modes=("eager",), atol=1.0)
