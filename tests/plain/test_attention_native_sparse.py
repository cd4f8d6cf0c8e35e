"""Native sparse attention on CPU tensors: compression and selection against plain loops, gradients against torch's autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import sequences
from moe_graph.operators.attention.nsa_compress import nsa_compress, nsa_compress_grad
from moe_graph.operators.attention.nsa_compress_infer import nsa_compress_infer
from moe_graph.operators.attention.nsa_select_attention import nsa_select_attention, nsa_select_attention_grad

DTYPES = st.sampled_from([torch.float16, torch.bfloat16])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 4),
    DTYPES,
    st.integers(0, 99),
)
def test_windows_are_summed_with_their_weights(lengths, size, stride, dtype, seed):
    stride, generator = min(stride, size), torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths) or 1, 2, 3, generator=generator).to(dtype)
    weight = torch.randn(size, 2, generator=generator).to(dtype)
    ends, rows, start = sequences.ends(lengths), [], 0
    values, weights = x.double().numpy(), weight.double().numpy()
    places = []
    for length in lengths:
        for first in range(start, start + length - size + 1, stride):
            places.append(first)
            rows.append(sum(values[first + i] * weights[i][:, None] for i in range(size)))
        start += length
    found = nsa_compress(x, weight, size, stride, actual_seq_len=ends)
    assert found.dtype == dtype and found.shape == (len(rows), 2, 3)
    sequences.assert_close(found.double().numpy(), rows, dtype)
    grad = torch.randn(len(rows), 2, 3, generator=generator).to(dtype)
    of_x, of_weight = np.zeros(x.shape), np.zeros(weight.shape)
    for first, row in zip(places, grad.double().numpy()):
        for i in range(size):
            of_x[first + i] += row * weights[i][:, None]
            of_weight[i] += (row * values[first + i]).sum(-1)
    found = nsa_compress_grad(grad, x, weight, size, stride, actual_seq_len=ends)
    np.testing.assert_allclose(found[0].double().numpy(), of_x, rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(found[1].double().numpy(), of_weight, rtol=2e-2, atol=5e-2)


@settings(max_examples=40, deadline=None)
@given(st.data(), DTYPES, st.booleans(), st.integers(0, 99))
def test_the_chosen_blocks_are_attended(data, dtype, is_causal, seed):
    batch, key_heads, groups, size, count = (data.draw(st.integers(1, 2)) for _ in range(5))
    heads, rng = key_heads * groups, np.random.default_rng(seed)
    q_lengths, k_lengths = (data.draw(st.lists(st.integers(1, 4), min_size=batch, max_size=batch)) for _ in "qk")
    queries = sequences.make(q_lengths, heads, 4, dtype, seed)
    keys, values = (sequences.make(k_lengths, key_heads, width, dtype, seed + i) for i, width in ((1, 4), (2, 3)))
    chosen = [rng.integers(0, -(-k // size), (key_heads, q, count)).astype(float) for q, k in zip(q_lengths, k_lengths)]
    expected = []
    for b in range(batch):
        output = np.zeros((heads, q_lengths[b], 3))
        for n in range(heads):
            for i in range(q_lengths[b]):
                tokens = [
                    j for block in chosen[b][n // groups, i] for j in range(int(block) * size, int(block + 1) * size)
                ]
                tokens = [j for j in tokens if j < k_lengths[b] and (j <= i or not is_causal)]
                one = [queries[b][n : n + 1, i : i + 1]], *([x[b][n // groups][None, tokens]] for x in (keys, values))
                output[n, i] = sequences.attention(*one, 0.3, lambda *_: True)[0][0][0, 0]
        expected.append(output)
    query, key, value = (sequences.lay_out(x, "TND", dtype) for x in (queries, keys, values))
    indices = sequences.lay_out(chosen, "TND", torch.int32)
    where = {"actual_seq_qlen": sequences.ends(q_lengths), "actual_seq_kvlen": sequences.ends(k_lengths)}
    where["atten_mask"] = sequences.triangle() if is_causal else None
    output, largest, total = nsa_select_attention(query, key, value, indices, 0.3, heads, size, count, **where)
    assert output.dtype == dtype and largest.shape == total.shape == (query.shape[0], heads, 8)
    sequences.assert_close(sequences.read(output, "TND", q_lengths, heads), expected, dtype)


def test_gradients_of_the_selection():
    """Every key is chosen once: the gradients are those of whole attention."""
    q, k, v, dy = (torch.randn(1, heads, rows, 4).half().double() for heads, rows in ((4, 3), (2, 6), (2, 6), (4, 3)))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    scores = 0.5 * (q @ k.repeat_interleave(2, 1).mT)
    output = scores.softmax(-1) @ v.repeat_interleave(2, 1)
    expected = torch.autograd.grad(output, leaves, dy)
    packed = [x.detach()[0].transpose(0, 1).half().contiguous() for x in (q, k, v)]
    indices = torch.tensor([1, 2, 0], dtype=torch.int32).expand(3, 2, 3).contiguous()
    where = {"actual_seq_qlen": [3], "actual_seq_kvlen": [6]}
    results = nsa_select_attention(*packed, indices, 0.5, 4, 2, 3, **where)
    grad = dy[0].transpose(0, 1).half().contiguous()
    found = nsa_select_attention_grad(grad, *packed, *results, indices, 0.5, 4, 2, 3, **where)
    for x, y in zip(found, expected):
        torch.testing.assert_close(x, y[0].transpose(0, 1).half(), rtol=5e-3, atol=5e-3)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 4), st.integers(2, 4), DTYPES
)
def test_a_window_that_has_just_filled_goes_to_its_slot(lengths, size, stride, page, dtype):
    stride, generator = min(stride, size), torch.Generator().manual_seed(sum(lengths))
    tokens = sequences.make([max(length, 1) for length in lengths], 2, 3, dtype, 1)
    pages, table = sequences.pages(tokens, page, "BnBsH", dtype, 0)
    weight = torch.randn(size, 2, generator=generator).to(dtype)
    slots = torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)].int()
    cache = torch.full((len(lengths) + 2, 2, 3), 7.0).to(dtype)
    expected = cache.double().numpy()
    for b, length in enumerate(lengths):
        if length >= size and (length - size) % stride == 0:
            window = tokens[b][:, length - size : length]
            expected[slots[b]] = sum(window[:, i] * weight[i].double().numpy()[:, None] for i in range(size))
    found = nsa_compress_infer(
        pages.unflatten(2, (2, 3)),
        weight,
        slots,
        size,
        stride,
        page,
        block_table=table,
        actual_seq_len=lengths,
        cache=cache,
    )
    assert found is cache
    sequences.assert_close(cache.double().numpy(), expected, dtype)


def test_what_is_excluded_is_named():
    x = torch.zeros(4, 2, 3, dtype=torch.float16)
    with pytest.raises(ValueError, match="npu_nsa_compress: weight must be of shape"):
        nsa_compress(x, torch.zeros(3, 2).half(), 2, 1, actual_seq_len=[4])
    with pytest.raises(ValueError, match="compress_stride must be from 1 to"):
        nsa_compress(x, torch.zeros(2, 2).half(), 2, 3, actual_seq_len=[4])
    where = {"actual_seq_qlen": [4], "actual_seq_kvlen": [4]}
    with pytest.raises(ValueError, match="topk_indices must be blocks of the query's sequence, got 9"):
        nsa_select_attention(x, x, x, torch.full((4, 2, 1), 9, dtype=torch.int32), 1.0, 2, 2, 1, **where)
