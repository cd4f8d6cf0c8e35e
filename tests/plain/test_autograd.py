"""Gradients by the transposed counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

import cases
import moe_graph
from moe_graph.re_routing import autograd

operator = torch.ops.npu.npu_moe_re_routing.default


def inputs(count=9, ranks=3, experts=4, scales=True):
    tokens = torch.randn(count, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(count, dtype=torch.float64, requires_grad=True) if scales else None
    return tokens, cases.make_counts(ranks, experts, count), weights


@pytest.mark.parametrize("idx_type", [0, 1])
@pytest.mark.parametrize("expert_token_num_type", [0, 1])
def test_gradcheck(idx_type, expert_token_num_type):
    tokens, counts, scales = inputs()

    def differentiable(tokens, scales):
        return operator(
            tokens, counts, per_token_scales=scales, idx_type=idx_type, expert_token_num_type=expert_token_num_type
        )[:2]

    forward = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    torch.autograd.gradcheck(differentiable, (tokens, scales), **forward)
    torch.autograd.gradgradcheck(differentiable, (tokens, scales), check_fwd_over_rev=True, check_batched_grad=True)
    torch.autograd.gradcheck(lambda t: operator(t, counts)[0], (tokens,), **forward)
    torch.autograd.gradcheck(lambda t, s: tuple(moe_graph.moe_un_routing(t, counts, s)), (tokens, scales), **forward)


def test_tangents_need_no_gradient_and_no_grad_mode():
    """The wrong one would be a tangent of zeros, or none, without an error."""
    tokens, counts, scales = (x.detach() for x in inputs())
    tangent = torch.randn_like(tokens)
    with forward_ad.dual_level(), torch.no_grad():
        outputs = operator(forward_ad.make_dual(tokens, tangent), counts, per_token_scales=scales)
        tangents = [forward_ad.unpack_dual(x).tangent for x in outputs]
        assert torch.equal(tangents[0], tangent[outputs[2]]) and tangents[1:] == [None] * 3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
def test_gradient_is_the_inverse_permutation(count, ranks, experts, seed):
    tokens = torch.randn(count, 4, requires_grad=True)
    outputs = moe_graph.moe_re_routing(tokens, cases.make_counts(ranks, experts, count, seed=seed))
    gradient = torch.randn(count, 4)
    outputs.permute_tokens.backward(gradient)
    expected = torch.empty_like(gradient)
    expected[outputs.permute_token_idx.long()] = gradient
    assert torch.equal(tokens.grad, expected)


def test_nothing_is_recorded_without_a_gradient(monkeypatch):
    monkeypatch.setattr(autograd._ReRouting, "apply", lambda *args: pytest.fail("recorded"))
    tokens, counts, scales = inputs()
    operator(tokens.detach(), counts, per_token_scales=scales.detach())
    with torch.no_grad():
        operator(tokens, counts, per_token_scales=scales)


def test_gradient_is_one_call_of_the_operator():
    from torch.utils._python_dispatch import TorchDispatchMode

    calls = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is operator:
                calls.append(args[1])
            return func(*args, **(kwargs or {}))

    tokens, counts, scales = inputs()
    with Watch():
        outputs = operator(tokens, counts, per_token_scales=scales)
        (outputs[0].sum() + outputs[1].sum()).backward()
    assert len(calls) == 2 and torch.equal(calls[1], counts.t())


@pytest.mark.parametrize("row", [(), (3,), (2, 2)], ids=str)
def test_only_scales_need_a_gradient(row):
    counts = cases.make_counts(2, 3, 8)
    tokens, scales = torch.zeros(8, 5, dtype=torch.int8), torch.randn(8, *row, requires_grad=True)
    gradient = torch.randn(8, *row)
    outputs = operator(tokens, counts, per_token_scales=scales)
    assert not outputs[0].requires_grad and outputs[1].requires_grad
    outputs[1].backward(gradient)
    assert torch.equal(outputs[1].detach(), scales.detach()[outputs[2]])
    assert torch.equal(scales.grad[outputs[2]], gradient)


def test_what_does_not_require_grad():
    tokens, counts, _ = inputs(scales=False)
    outputs = operator(tokens, counts)
    assert [x.requires_grad for x in outputs] == [True, False, False, False]
    outputs = operator(tokens, counts, per_token_scales=torch.zeros(9))
    assert [x.requires_grad for x in outputs] == [True, False, False, False]
    with torch.no_grad():
        assert not any(x.requires_grad for x in operator(tokens, counts))
    with torch.inference_mode():
        assert all(x.is_inference() for x in operator(tokens.detach().clone(), counts))


def test_unused_outputs_send_no_gradient():
    tokens, counts, scales = inputs()
    operator(tokens, counts, per_token_scales=scales)[0].sum().backward()
    assert scales.grad is None and torch.equal(tokens.grad, torch.ones_like(tokens))
