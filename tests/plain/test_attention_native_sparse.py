"""Native sparse attention on CPU tensors: compression and selection against plain loops, gradients against torch's autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import sequences
from moe_graph.operators.attention.nsa_compress import nsa_compress, nsa_compress_grad
from moe_graph.operators.attention.nsa_compress_attention import nsa_compress_attention
from moe_graph.operators.attention.nsa_compress_infer import nsa_compress_infer
from moe_graph.operators.attention.nsa_infer import nsa_compress_attention_infer, nsa_select_attention_infer
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


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def importance(probabilities, blocks, select, window):
    """P [K's group, Sk] -> [blocks], by the document's sums."""
    scores = np.zeros(blocks)
    for j in range(blocks):
        for a in range(select):
            for b in range(window):
                place = select * (j + 1) - a - b
                if place < probabilities.shape[1]:
                    scores[j] += probabilities[:, place].sum()
    return scores


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(2, 9)), min_size=1, max_size=3), st.booleans(), st.integers(0, 99)
)
def test_compressed_attention_selects_blocks(sizes, masked, seed):
    """compress_stride 2, blocks of 4 compressed and 8 selected keys: sums over 4 and over 2."""
    rng = np.random.default_rng(seed)
    q_lengths, k_lengths = zip(*sizes)
    blocks = [(2 * (k - 1) + 4 + 7) // 8 for k in k_lengths]
    query, key, value = (
        rng.standard_normal((n, heads, width)).astype(np.float16)
        for n, heads, width in ((sum(q_lengths), 4, 3), (sum(k_lengths), 2, 3), (sum(k_lengths), 2, 5))
    )
    hidden, first = rng.random((max(q_lengths), max(k_lengths))) < 0.3, np.zeros((max(q_lengths), max(blocks)), bool)
    hidden[:, 0], first[:, -1] = False, True
    found = nsa_compress_attention(
        *(torch.from_numpy(x) for x in (query, key, value)),
        0.7,
        4,
        4,
        2,
        8,
        min(blocks),
        topk_mask=torch.from_numpy(first) if masked else None,
        atten_mask=torch.from_numpy(hidden) if masked else None,
        actual_seq_qlen=np.cumsum(q_lengths).tolist(),
        actual_cmp_seq_kvlen=np.cumsum(k_lengths).tolist(),
        actual_sel_seq_kvlen=np.cumsum(blocks).tolist(),
    )
    q0 = k0 = 0
    for b, (rows, columns) in enumerate(sizes):
        for i in range(rows):
            for k in range(2):
                group = []
                for n in (2 * k, 2 * k + 1):
                    scores = key[k0 : k0 + columns, k].astype(np.float64) @ query[q0 + i, n].astype(np.float64) * 0.7
                    scores = np.where(hidden[i, :columns], -np.inf, scores) if masked else scores
                    group.append(softmax(scores))
                    expected = group[-1] @ value[k0 : k0 + columns, k].astype(np.float64)
                    np.testing.assert_allclose(found[0][q0 + i, n].double(), expected, rtol=2e-3, atol=2e-3)
                    assert found[2][q0 + i, n].tolist() == [pytest.approx(scores.max(), rel=1e-4, abs=1e-5)] * 8
                    total = np.exp(scores - scores.max()).sum()
                    assert found[3][q0 + i, n].tolist() == [pytest.approx(total, rel=1e-4)] * 8
                ranks = importance(np.stack(group), blocks[b], 4, 2)
                chosen = found[1][q0 + i, k].tolist()
                if masked and first[i, : blocks[b]].any():
                    assert chosen[0] == max(blocks) - 1
                    ranks[chosen[0]] = np.inf
                assert len(set(chosen)) == len(chosen)
                left = set(range(blocks[b])) - set(chosen)
                # equal but for rounding: no block left out has a larger importance
                assert all(ranks[x] <= min(ranks[chosen]) + 1e-5 for x in left)
        q0, k0 = q0 + rows, k0 + columns


def pages(rng, lengths, size, heads, width):
    """(cache [blocks, size, heads * width], table, the tokens of each sequence)"""
    counts = [-(-n // size) for n in lengths]
    order = rng.permutation(sum(counts))
    table = np.full((len(lengths), max(counts)), -1, dtype=np.int32)
    cache, start = rng.standard_normal((sum(counts), size, heads, width)).astype(np.float16), 0
    tokens = []
    for b, count in enumerate(counts):
        table[b, :count] = order[start : start + count]
        tokens.append(cache[table[b, :count]].reshape(-1, heads, width)[: lengths[b]])
        start += count
    return cache.reshape(len(cache), size, -1), table, tokens


@pytest.mark.parametrize("layout", ["TND", "BSND"])
def test_a_decoding_step_over_compressed_keys(layout):
    rng, lengths = np.random.default_rng(5), [17, 12]
    query = rng.standard_normal((2, 4, 6)).astype(np.float16)
    key, table, keys = pages(rng, lengths, 4, 2, 6)
    value, _, _ = pages(rng, lengths, 4, 2, 3)
    values = [value[table[b, : -(-n // 4)]].reshape(-1, 2, 3)[:n] for b, n in enumerate(lengths)]
    given_query = torch.from_numpy(query if layout == "TND" else query[:, None])
    out, chosen = nsa_compress_attention_infer(
        given_query,
        torch.from_numpy(key),
        torch.from_numpy(value),
        0.5,
        4,
        2,
        8,
        4,
        4,
        4,
        2,
        layout=layout,
        block_table=torch.from_numpy(table),
        actual_cmp_seq_kvlen=lengths,
    )
    assert out.shape == (*given_query.shape[:-1], 3)
    out, chosen = out.reshape(2, 4, 3), chosen.reshape(2, 2, 4)
    for b in range(2):
        blocks = (2 * (lengths[b] - 1) + 4 + 7) // 8
        for k in range(2):
            group = []
            for n in (2 * k, 2 * k + 1):
                group.append(softmax(keys[b][:, k].astype(np.float64) @ query[b, n].astype(np.float64) * 0.5))
                expected = group[-1] @ values[b][:, k].astype(np.float64)
                np.testing.assert_allclose(out[b, n].double(), expected, rtol=2e-3, atol=2e-3)
            ranks = importance(np.stack(group), blocks, 4, 2)
            others = sorted(range(1, blocks - 2), key=lambda j: -ranks[j])
            assert chosen[b, k].tolist() == [0, blocks - 2, blocks - 1, others[0]]


@pytest.mark.parametrize("layout", ["TND", "BSND", "BSH"])
def test_a_decoding_step_over_selected_blocks(layout):
    rng, lengths = np.random.default_rng(6), [9, 5]
    query = rng.standard_normal((2, 4, 6)).astype(np.float16)
    key, table, keys = pages(rng, lengths, 4, 2, 6)
    value, _, _ = pages(rng, lengths, 4, 2, 3)
    chosen = np.array([[[4, 0, -1], [2, 1, 3]], [[2, 2, -1], [0, -1, -1]]], dtype=np.int32)  # blocks of 2
    shape = {"TND": (2, 4, 6), "BSND": (2, 1, 4, 6), "BSH": (2, 1, 24)}[layout]
    found = nsa_select_attention_infer(
        torch.from_numpy(query).reshape(shape),
        torch.from_numpy(key),
        torch.from_numpy(value),
        torch.from_numpy(chosen),
        0.5,
        4,
        2,
        2,
        3,
        4,
        layout=layout,
        block_table=torch.from_numpy(table),
        actual_seq_kvlen=lengths,
    )
    assert found.dtype == torch.float16 and found.shape[:2] == shape[:2]
    for b in range(2):
        whole = value[table[b, : -(-lengths[b] // 4)]].reshape(-1, 2, 3)
        for n in range(4):
            seen = [t for j in chosen[b, n // 2] if j >= 0 for t in range(2 * j, min(2 * j + 2, lengths[b]))]
            weights = softmax(keys[b][seen, n // 2].astype(np.float64) @ query[b, n].astype(np.float64) * 0.5)
            expected = weights @ whole[seen, n // 2].astype(np.float64)
            np.testing.assert_allclose(found.reshape(2, 4, 3)[b, n].double(), expected, rtol=2e-3, atol=2e-3)
    with pytest.raises(
        NotImplementedError, match="npu_nsa_select_attention_infer: query must be one for each sequence"
    ):
        nsa_select_attention_infer(
            torch.zeros(1, 2, 4, 6).half(),
            torch.from_numpy(key),
            torch.from_numpy(value),
            torch.from_numpy(chosen),
            0.5,
            4,
            2,
            2,
            3,
            4,
            block_table=torch.from_numpy(table),
            actual_seq_kvlen=[9],
        )
