"""npu_moe_gating_top_k on CPU tensors, against loops from the document's formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import moe_graph  # noqa: F401  registers the operator
from moe_graph.operators.moe.gating_top_k import gating_top_k_backward
from versions import opcheck

operator = torch.ops.npu.npu_moe_gating_top_k


def reference(row, k, bias, k_group, group_count, group_select_mode, norm_type, routed_scaling_factor, eps, **_):
    """Weights, experts and normalized scores of one token, from Python numbers."""
    if norm_type == 1:
        norm = [1 / (1 + math.exp(-value)) for value in row]
    else:
        powers = [math.exp(value - max(row)) for value in row]
        norm = [power / sum(powers) for power in powers]
    ranked = [score + offset for score, offset in zip(norm, bias or [0.0] * len(row))]
    size = len(row) // group_count
    groups = [ranked[g * size : (g + 1) * size] for g in range(group_count)]
    scores = [max(group) if group_select_mode == 0 else sum(sorted(group)[-2:]) for group in groups]
    best = sorted(range(group_count), key=lambda g: -scores[g])[:k_group]
    allowed = [expert for expert in range(len(row)) if expert // size in best]
    chosen = sorted(allowed, key=lambda expert: -ranked[expert])[:k]
    weights = [norm[expert] for expert in chosen]
    if norm_type == 1:
        weights = [weight / (sum(weights) + eps) for weight in weights]
    return [weight * routed_scaling_factor for weight in weights], chosen, norm


@st.composite
def calls(draw):
    group_count = draw(st.sampled_from([1, 2, 4]))
    size = draw(st.integers(3, 6))
    k_group = draw(st.integers(1, group_count))
    rows, experts = draw(st.integers(0, 5)), size * group_count
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    # Distinct scores, far enough apart for every dtype: the order of equal ones is not the document's.
    x = torch.stack([torch.randperm(experts, generator=generator) for _ in range(rows)] or [torch.zeros(0, experts)])
    x = (x[:rows] * 0.25 - 2).view(rows, experts).to(dtype)
    bias = (torch.randperm(experts, generator=generator) / 64).to(dtype) if draw(st.booleans()) else None
    return (
        x,
        draw(st.integers(1, size * k_group)),
        {
            "bias": bias,
            "k_group": k_group,
            "group_count": group_count,
            "group_select_mode": draw(st.sampled_from([0, 1])),
            "norm_type": draw(st.sampled_from([0, 1])),
            "out_flag": draw(st.booleans()),
            "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
            "eps": 1e-20,
        },
    )


@settings(max_examples=120, deadline=None)
@given(calls())
def test_equals_the_formula(call):
    x, k, options = call
    y, expert_idx, norm_out = operator(x, k, **options)
    bias = options["bias"]
    rows = [
        reference(row, k, **{**options, "bias": None if bias is None else bias.tolist()}) for row in x.double().tolist()
    ]
    assert (y.dtype, expert_idx.dtype, norm_out.dtype) == (x.dtype, torch.int32, torch.float32)
    assert y.shape == expert_idx.shape == (len(x), k) and norm_out.shape == x.shape
    assert expert_idx.tolist() == [chosen for _, chosen, _ in rows]
    expected = torch.tensor([weights for weights, _, _ in rows]).view(len(x), k)
    torch.testing.assert_close(y, expected.to(x.dtype))
    norm = torch.tensor([norm for _, _, norm in rows]).view(x.shape)
    torch.testing.assert_close(norm_out, norm if options["out_flag"] else torch.zeros_like(norm))


def properties(outputs):
    return [(z.shape, z.dtype, z.is_contiguous()) for z in outputs]


@settings(max_examples=40, deadline=None)
@given(calls())
def test_fake_agrees(call):
    x, k, options = call
    expected = properties(operator(x, k, **options))
    bias = options["bias"]
    options["bias"] = None if bias is None else bias.to("meta")
    assert properties(operator(x.to("meta"), k, **options)) == expected


def test_symbolic_token_counts():
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        x = mode.from_tensor(torch.randn(5, 8), static_shapes=False)
        y, expert_idx, _ = operator(x, 2, group_count=2, k_group=1)
    assert str(y.shape[0]) == str(expert_idx.shape[0]) == str(x.shape[0])


def test_of_equal_scores_the_smaller_number_comes_first():
    _, expert_idx, _ = operator(torch.zeros(2, 9), 4, group_count=3, k_group=2, norm_type=1)
    assert expert_idx.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("norm_type", [0, 1])
def test_gradients(norm_type):
    x = torch.randn(4, 8, dtype=torch.float32, requires_grad=True)
    options = dict(norm_type=norm_type, group_count=2, k_group=1, bias=torch.randn(8), routed_scaling_factor=2.0)
    y, expert_idx, _ = operator(x, 3, **options)
    (found,) = torch.autograd.grad(y.square().sum(), x)
    norm = x.sigmoid() if norm_type else x.softmax(-1)
    weights = norm.gather(1, expert_idx.long())
    expected = weights / weights.sum(-1, keepdim=True) * 2 if norm_type else weights * 2
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), x)[0])
    opcheck(operator.default, (x.detach(), 3), options)


@pytest.mark.parametrize("norm_type", [0, 1])
def test_the_hash_mode_chooses_by_a_table(norm_type):
    x, ids = torch.randn(4, 8, requires_grad=True), torch.tensor([2, 0, 0, 1])
    table = torch.tensor([[3, 1], [7, 0], [5, 6]], dtype=torch.int32)
    y, expert_idx, norm = operator(
        x, 2, input_ids=ids, tid2eid=table, norm_type=norm_type, routed_scaling_factor=2.0, out_flag=True
    )
    for i, number in enumerate(ids.tolist()):
        assert expert_idx[i].tolist() == table[number].tolist()
        weights = norm.detach()[i, table[number].long()].tolist()
        total = sum(weights) if norm_type else 1.0
        assert y.detach()[i].tolist() == pytest.approx([2 * weight / total for weight in weights], rel=1e-5)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    with pytest.raises(ValueError, match="input_ids must be from 0 to 2"):
        operator(x.detach(), 2, input_ids=ids + 1, tid2eid=table)


@pytest.mark.parametrize("norm_type", [0, 1])
def test_the_backward_operator_is_autograds_gradient(norm_type):
    x = torch.randn(4, 8, dtype=torch.float32, requires_grad=True)
    y, expert_idx, norm = operator(x, 3, norm_type=norm_type, routed_scaling_factor=2.0, out_flag=True)
    grad = torch.randn(4, 3)
    found = gating_top_k_backward(
        norm.detach(), grad, expert_idx, norm_type=norm_type, routed_scaling_factor=2.0, eps=1e-20
    )
    torch.testing.assert_close(found, torch.autograd.grad(y, x, grad)[0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(4, 8, dtype=torch.float64)}, "x must be of dtype torch.float16"),
        ({"x": torch.zeros(8)}, r"x must be of shape \[N, E\], got shape \(8,\)"),
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"k": 5, "group_count": 2}, "k must be at most the experts of 1 groups"),
        ({"group_count": 3}, "x must be of a number of experts that group_count = 3 divides"),
        ({"group_count": 4}, "x must be of more than 2 experts in each of 4 groups"),
        ({"group_count": 2, "k_group": 3}, "k_group must be from 1 to 2, got 3"),
        ({"renorm": 1}, "renorm must be one of 0, got 1"),
        ({"norm_type": 2}, "norm_type must be one of 0, 1, got 2"),
        ({"group_select_mode": 2}, "group_select_mode must be one of 0, 1, got 2"),
        ({"bias": torch.zeros(7)}, r"bias must be of shape \[E\], E = 8, got shape \(7,\)"),
        ({"bias": torch.zeros(8).half()}, "bias must be of dtype torch.float32, got torch.float16"),
        (
            {"input_ids": torch.zeros(4).int(), "tid2eid": torch.zeros(9, 3).int()},
            r"tid2eid must be of last size k = 2, got shape \(9, 3\)",
        ),
        ({"input_ids": torch.zeros(4).int()}, "input_ids and tid2eid must be both given, or neither"),
        (
            {"input_ids": torch.zeros(4).int(), "tid2eid": torch.zeros(9, 2).int(), "bias": torch.zeros(8)},
            "bias must be None .the hash mode's document has none.",
        ),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input_is_refused_by_name(change, message, device):
    arguments = {"x": torch.zeros(4, 8), "k": 2, **change}
    arguments = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=f"npu_moe_gating_top_k: {message}"):
        operator(arguments.pop("x"), arguments.pop("k"), **arguments)
