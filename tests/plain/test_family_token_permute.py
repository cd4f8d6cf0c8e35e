"""npu_moe_token_permute and npu_moe_token_unpermute on CPU tensors, against loops from their documents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_graph  # noqa: F401  registers the operators
from versions import opcheck

permute, unpermute = torch.ops.npu.npu_moe_token_permute, torch.ops.npu.npu_moe_token_unpermute


def reference_permute(tokens, indices, num_out_tokens):
    """Rows and places, as lists."""
    k = 1 if indices.dim() == 1 else indices.shape[1]
    experts = indices.flatten().tolist()
    order = sorted(range(len(experts)), key=lambda copy: (experts[copy], copy))
    places = [order.index(copy) for copy in range(len(experts))]
    rows = [tokens[copy // k].tolist() for copy in order]
    wanted = num_out_tokens or 0
    return rows[:wanted] if wanted else rows, places


def reference_unpermute(rows, places, probs, width):
    k = probs.shape[1]
    result = []
    for token in range(len(probs)):
        total = [0.0] * width
        for choice in range(k):
            place = places[token * k + choice]
            if place < len(rows):
                total = [a + b * probs[token, choice].item() for a, b in zip(total, rows[place])]
        result.append(total)
    return result


@st.composite
def calls(draw):
    count, k = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int8]))
    tokens = torch.randint(-9, 9, (count, 3), generator=generator).to(dtype)
    indices = torch.randint(0, draw(st.integers(1, 5)), (count, k), generator=generator)
    indices = indices.to(draw(st.sampled_from([torch.int32, torch.int64])))
    flat = k == 1 and draw(st.booleans())
    total = count * k
    return (
        tokens,
        indices.flatten() if flat else indices,
        draw(st.sampled_from([None, 0, total, total + 2, *range(-total, total)])),
    )


@settings(max_examples=150, deadline=None)
@given(calls(), st.booleans())
def test_there_and_back(call, weighted):
    tokens, indices, num_out_tokens = call
    permuted, places = permute(tokens, indices, num_out_tokens)
    rows, expected_places = reference_permute(tokens, indices, num_out_tokens)
    assert permuted.dtype == tokens.dtype and places.dtype == torch.int32
    assert permuted.tolist() == rows and permuted.shape == (len(rows), 3)
    assert places.tolist() == expected_places
    if tokens.dtype == torch.int8 or not (weighted or indices.dim() == 1 or indices.shape[1] == 1):
        return
    count = len(tokens)
    probs = torch.ones(count, indices.numel() // max(count, 1) or 1)
    if weighted:
        probs = torch.randint(1, 5, probs.shape, generator=torch.Generator().manual_seed(3)) / 4
    probs = probs.to(tokens.dtype)
    back = unpermute(permuted, places, probs if weighted else None)
    assert back.dtype == tokens.dtype
    assert back.tolist() == reference_unpermute(rows, expected_places, probs, 3)


@settings(max_examples=50, deadline=None)
@given(calls())
def test_fake_agrees(call):
    tokens, indices, num_out_tokens = call
    real = permute(tokens, indices, num_out_tokens)
    fake = permute(tokens.to("meta"), indices.to("meta"), num_out_tokens)
    assert [(x.shape, x.dtype) for x in fake] == [(x.shape, x.dtype) for x in real]
    if tokens.dtype != torch.int8:
        back = unpermute(fake[0], fake[1])
        assert (back.shape, back.dtype) == ((indices.numel(), 3), tokens.dtype)


@pytest.mark.parametrize("num_out_tokens", [None, 5, -2])
def test_gradients(num_out_tokens):
    tokens, probs = torch.randn(4, 3, requires_grad=True), torch.rand(4, 2, requires_grad=True)
    indices = torch.tensor([[0, 2], [2, 1], [1, 0], [2, 2]])
    permuted, places = permute(tokens, indices, num_out_tokens)
    weight = torch.randn(4, 3)
    found = torch.autograd.grad((unpermute(permuted, places, probs) * weight).sum(), (tokens, probs))
    kept = (places.view(4, 2) < len(permuted)).float()  # what the way there dropped adds nothing on the way back
    torch.testing.assert_close(found[0], weight * (probs * kept).sum(1, keepdim=True))
    torch.testing.assert_close(found[1], (tokens * weight).sum(1, keepdim=True) * kept)


def test_opcheck():
    tokens, indices = torch.randn(4, 3), torch.tensor([[0, 2], [2, 1], [1, 0], [2, 2]])
    opcheck(permute.default, (tokens, indices, 5))
    permuted, places = permute(tokens, indices)
    opcheck(unpermute.default, (permuted.requires_grad_(), places, torch.rand(4, 2)))


def test_a_shape_to_restore_is_not_looked_at():
    permuted, places = permute(torch.randn(4, 3), torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]]))
    probs = torch.rand(4, 2)
    assert torch.equal(unpermute(permuted, places, probs, False, [4, 3]), unpermute(permuted, places, probs))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f, i: permute(f(4, 3), i(4, 2), 3, True), "npu_moe_token_permute: padded_mode must be False"),
        (lambda f, i: permute(f(4, 3).double(), i(4, 2)), "npu_moe_token_permute: tokens must be of dtype"),
        (lambda f, i: permute(f(4), i(4, 2)), r"npu_moe_token_permute: tokens must be of shape \[N, H\]"),
        (lambda f, i: permute(f(4, 3), i(5, 2)), "npu_moe_token_permute: indices must be of first size 4"),
        (lambda f, i: permute(f(4, 3), f(4, 2)), "npu_moe_token_permute: indices must be of dtype torch.int32"),
        (lambda f, i: permute(f(4, 3), i(4, 2), -9), "npu_moe_token_permute: num_out_tokens must be at least -N"),
        (lambda f, i: unpermute(f(8, 3), i(8), None, True), "npu_moe_token_unpermute: padded_mode must be False"),
        (lambda f, i: unpermute(f(8, 3), f(8)), "npu_moe_token_unpermute: sorted_indices must be of dtype"),
        (
            lambda f, i: unpermute(f(8, 3), i(8), f(4, 3)),
            "npu_moe_token_unpermute: probs must be of N . K = 8 elements",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message, device):
    def floats(*shape):
        return torch.zeros(shape, device=device)

    def integers(*shape):
        return torch.zeros(shape, dtype=torch.int64, device=device)

    with pytest.raises(ValueError, match=message):
        call(floats, integers)
