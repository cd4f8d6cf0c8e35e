"""npu_moe_gating_top_k_softmax on CPU tensors, against loops from its document."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_graph  # noqa: F401  registers the operator
from versions import opcheck

operator = torch.ops.npu.npu_moe_gating_top_k_softmax


@st.composite
def calls(draw):
    shape = draw(st.sampled_from([(0,), (4,), (2, 3), (3, 0)]))
    experts = draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    count = math.prod(shape)
    # Distinct scores: the order of equal ones is not the document's.
    rows = [torch.randperm(experts, generator=generator) for _ in range(count)] or [torch.zeros(experts)]
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    x = (torch.stack(rows)[:count] * 0.5 - 1).view(*shape, experts).to(dtype)
    finished = torch.randint(0, 2, shape, generator=generator).bool() if draw(st.booleans()) else None
    return x, finished, draw(st.integers(1, experts))


@settings(max_examples=120, deadline=None)
@given(calls())
def test_equals_the_formula(call):
    x, finished, k = call
    y, expert_idx, row_idx = operator(x, finished, k)
    experts, shape = x.shape[-1], (*x.shape[:-1], k)
    rows = x.reshape(-1, experts).double().tolist()
    done = [False] * len(rows) if finished is None else finished.flatten().tolist()
    weights, chosen, places = [], [], []
    for number, (row, is_done) in enumerate(zip(rows, done)):
        powers = [math.exp(value) for value in row]
        order = sorted(range(experts), key=lambda expert: -row[expert])[:k]  # noqa: B023
        weights.append([powers[expert] / sum(powers) for expert in order])
        chosen.append([experts if is_done else expert for expert in order])
        places.append([choice * len(rows) + number for choice in range(k)])
    torch.testing.assert_close(y, torch.tensor(weights).view(shape).to(x.dtype))
    assert expert_idx.dtype == row_idx.dtype == torch.int32
    assert expert_idx.tolist() == torch.tensor(chosen).view(shape).tolist()
    assert row_idx.tolist() == torch.tensor(places).view(shape).tolist()
    fake = operator(x.to("meta"), None if finished is None else finished.to("meta"), k)
    assert [(z.shape, z.dtype) for z in fake] == [(z.shape, z.dtype) for z in (y, expert_idx, row_idx)]


def test_gradients_and_opcheck():
    x = torch.randn(4, 6, requires_grad=True)
    y, expert_idx, _ = operator(x, None, 2)
    expected = x.softmax(-1).gather(1, expert_idx.long())
    (found,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), x)[0])
    opcheck(operator.default, (x.detach(), torch.tensor([True, False, False, True]), 2))


@pytest.mark.parametrize(
    "x, finished, k, message",
    [
        (torch.zeros(4, 6).double(), None, 1, "x must be of dtype"),
        (torch.zeros(6), None, 1, r"x must be of shape \[N, E\] or \[B, S, E\]"),
        (torch.zeros(4, 6), None, 0, "k must be from 1 to 1024, got 0"),
        (torch.zeros(4, 6), None, 7, "x must be of at least k = 7 experts"),
        (torch.zeros(4, 6), torch.zeros(4), 1, "finished must be of dtype torch.bool"),
        (torch.zeros(4, 6), torch.zeros(3).bool(), 1, r"finished must be of shape \(4,\)"),
    ],
)
def test_bad_input_is_refused_by_name(x, finished, k, message):
    with pytest.raises(ValueError, match=f"npu_moe_gating_top_k_softmax: {message}"):
        operator(x, finished, k)
