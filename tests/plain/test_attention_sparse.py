"""npu_lightning_indexer, npu_sparse_flash_attention and their int8 forms on CPU tensors, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import sequences
from moe_graph.operators.attention.kv_quant_sparse_flash_attention import kv_quant_sparse_flash_attention
from moe_graph.operators.attention.lightning_indexer import lightning_indexer
from moe_graph.operators.attention.quant_lightning_indexer import quant_lightning_indexer
from moe_graph.operators.attention.sparse_flash_attention import sparse_flash_attention

DTYPES = st.sampled_from([torch.float16, torch.bfloat16])
LAYOUTS = st.sampled_from([("BSND", "BSND"), ("BSND", "PA_BSND"), ("TND", "TND"), ("TND", "PA_BSND")])
LENGTHS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=3)


def laid_out(q_lengths, k_lengths, layouts, block_size, seed, queries=(), keys=()):
    """Tensors of the queries' and the keys' side, each given as (sequences, dtype), and the arguments that tell the layout."""
    on_query = [sequences.lay_out(x, layouts[0], dtype, fill=0) for x, dtype in queries]
    if layouts[1] == "PA_BSND":
        pages = [sequences.pages(x, block_size, "BnBsH", dtype, seed) for x, dtype in keys]
        on_key, table = [x.unsqueeze(2) for x, _ in pages], pages[0][1]
    else:
        on_key, table = [sequences.lay_out(x, layouts[1], dtype, fill=0) for x, dtype in keys], None
    tell = {"layout_query": layouts[0], "block_table": table}
    tell["actual_seq_lengths_query"] = torch.tensor(
        sequences.ends(q_lengths) if layouts[0] == "TND" else q_lengths, dtype=torch.int32
    )
    lengths = torch.tensor(sequences.ends(k_lengths) if layouts[1] == "TND" else k_lengths, dtype=torch.int32)
    return on_query, on_key, tell, lengths


def seen(mode, q_lengths, k_lengths, b, i):
    """How many of the first keys the query may look at."""
    return k_lengths[b] if mode == 0 else max(0, k_lengths[b] - q_lengths[b] + i + 1)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, LAYOUTS, DTYPES, st.sampled_from([0, 3]), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_the_best_keys_come_first(lengths, layouts, dtype, mode, count, block_size, seed):
    q_lengths, k_lengths = (list(x) for x in zip(*lengths))
    queries, keys = sequences.make(q_lengths, 3, 4, dtype, seed), sequences.make(k_lengths, 1, 4, dtype, seed + 1)
    weights = sequences.make(q_lengths, 3, 1, dtype, seed + 2)
    (query, weight), (key,), tell, key_lengths = laid_out(
        q_lengths, k_lengths, layouts, block_size, seed, ((queries, dtype), (weights, dtype)), ((keys, dtype),)
    )
    indices, values = lightning_indexer(
        query,
        key,
        weight.squeeze(-1),
        **tell,
        layout_key=layouts[1],
        actual_seq_lengths_key=key_lengths,
        sparse_count=count,
        sparse_mode=mode,
        return_value=True,
    )
    assert indices.dtype == torch.int32 and values.dtype == dtype
    found = sequences.read(indices, layouts[0], q_lengths, 1)
    found_values = sequences.read(values, layouts[0], q_lengths, 1)
    for b, length in enumerate(q_lengths):
        for i in range(length):
            scores = {}
            for j in range(seen(mode, q_lengths, k_lengths, b, i)):
                products = [max(0.0, float(queries[b][n, i] @ keys[b][0, j])) for n in range(3)]
                scores[j] = sum(weights[b][n, i, 0] * products[n] for n in range(3))
            order = sorted(scores, key=lambda j: -scores[j])[:count]
            row = [int(j) for j in found[b][0, i]]
            assert row[len(order) :] == [-1] * (count - len(order)) and len(set(row[: len(order)])) == len(order)
            # Scores that differ by a rounding alone may change places.
            np.testing.assert_allclose([scores[j] for j in row[: len(order)]], [scores[j] for j in order], atol=1e-4)
            got = found_values[b][0, i]
            tolerance = sequences.TOLERANCES[dtype]
            np.testing.assert_allclose(got[: len(order)], [scores[j] for j in order], rtol=tolerance, atol=tolerance)
            assert (got[len(order) :] == -np.inf).all()


@settings(max_examples=30, deadline=None)
@given(LENGTHS, LAYOUTS, st.integers(1, 6), st.integers(0, 99))
def test_the_int8_indexer(lengths, layouts, count, seed):
    q_lengths, k_lengths = (list(x) for x in zip(*lengths))
    half, generator = torch.float16, np.random.default_rng(seed)
    queries = [generator.integers(-128, 128, (2, n, 8)).astype(float) for n in q_lengths]
    keys = [generator.integers(-128, 128, (1, n, 8)).astype(float) for n in k_lengths]
    weights, q_scales = (sequences.make(q_lengths, 2, 1, half, seed + i) for i in (1, 2))
    k_scales = [np.abs(x) for x in sequences.make(k_lengths, 1, 1, half, seed + 3)]
    (query, weight, q_scale), (key, k_scale), tell, key_lengths = laid_out(
        q_lengths,
        k_lengths,
        layouts,
        2,
        seed,
        ((queries, torch.int8), (weights, half), (q_scales, half)),
        ((keys, torch.int8), (k_scales, half)),
    )
    indices = quant_lightning_indexer(
        query,
        key,
        weight.squeeze(-1),
        q_scale.squeeze(-1),
        k_scale.squeeze(-1),
        0,
        0,
        **tell,
        layout_key=layouts[1],
        actual_seq_lengths_key=key_lengths,
        sparse_count=count,
    )
    found = sequences.read(indices, layouts[0], q_lengths, 1)
    for b, length in enumerate(q_lengths):
        for i in range(length):
            scores = {}
            for j in range(seen(3, q_lengths, k_lengths, b, i)):
                total = 0.0
                for n in range(2):
                    product = np.float16(max(0.0, float(queries[b][n, i] @ keys[b][0, j])) / 1024)
                    total += float(np.float16(weights[b][n, i, 0]) * np.float16(q_scales[b][n, i, 0])) * float(product)
                scores[j] = total * k_scales[b][0, j, 0]
            order = sorted(scores, key=lambda j: -scores[j])[:count]
            row = [int(j) for j in found[b][0, i]]
            assert row[len(order) :] == [-1] * (count - len(order))
            np.testing.assert_allclose([scores[j] for j in row[: len(order)]], [scores[j] for j in order], rtol=1e-5)


def choices(q_lengths, k_lengths, block_size, count, seed):
    """For each sequence [1, S, count] block numbers, and -1 behind them; some chosen twice, some right of the diagonal."""
    generator, made = np.random.default_rng(seed), []
    for q_length, k_length in zip(q_lengths, k_lengths):
        rows = np.full((1, q_length, count), -1.0)
        for i in range(q_length):
            chosen = generator.integers(0, -(-k_length // block_size), generator.integers(0, count + 1))
            rows[0, i, : len(chosen)] = chosen
        made.append(rows)
    return made


def by_loops(queries, keys, values, chosen, q_lengths, k_lengths, block_size, mode, sink):
    """Attention over the chosen keys, with a key that is chosen twice written out twice."""
    outputs = []
    for b, query in enumerate(queries):
        output = np.zeros((query.shape[0], query.shape[1], values[b].shape[2]))
        for i in range(query.shape[1]):
            tokens = []
            for block in chosen[b][0, i]:
                if block == -1:
                    break
                tokens += range(int(block) * block_size, min(int(block + 1) * block_size, k_lengths[b]))
            tokens = [j for j in tokens if j < seen(mode, q_lengths, k_lengths, b, i)]
            one = sequences.attention(
                [query[:, i : i + 1]], [keys[b][:, tokens]], [values[b][:, tokens]], 0.3, lambda *_: True, sink=sink
            )
            output[:, i] = one[0][0][:, 0]
        outputs.append(output)
    return outputs


@settings(max_examples=50, deadline=None)
@given(
    LENGTHS,
    LAYOUTS,
    DTYPES,
    st.sampled_from([0, 3]),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_attention_over_the_chosen_keys(lengths, layouts, dtype, mode, block_size, with_sink, want_sums, seed):
    q_lengths, k_lengths = (list(x) for x in zip(*lengths))
    queries, rope_q = (sequences.make(q_lengths, 2, width, dtype, seed) for width in (4, 2))
    keys, rope_k = (sequences.make(k_lengths, 1, width, dtype, seed + 1) for width in (4, 2))
    chosen = choices(q_lengths, k_lengths, block_size, 3, seed)
    sink = [0.5, -1.0] if with_sink else None
    (query, query_rope, indices), (key, key_rope), tell, key_lengths = laid_out(
        q_lengths,
        k_lengths,
        layouts,
        4,
        seed,
        ((queries, dtype), (rope_q, dtype), (chosen, torch.int32)),
        ((keys, dtype), (rope_k, dtype)),
    )
    output, largest, total = sparse_flash_attention(
        query,
        key,
        key,
        indices,
        0.3,
        **tell,
        query_rope=query_rope,
        key_rope=key_rope,
        layout_kv=layouts[1],
        actual_seq_lengths_kv=key_lengths,
        sparse_block_size=block_size,
        sparse_mode=mode,
        attention_mode=2,
        return_softmax_lse=want_sums,
        sinks=None if sink is None else torch.tensor(sink),
    )
    whole_q, whole_k = (
        [np.concatenate(pair, 2) for pair in zip(*both)] for both in ((queries, rope_q), (keys, rope_k))
    )
    expected = by_loops(whole_q, whole_k, keys, chosen, q_lengths, k_lengths, block_size, mode, sink)
    assert output.dtype == dtype
    sequences.assert_close(sequences.read(output, layouts[0], q_lengths, 2), expected, dtype)
    if want_sums:
        shape = (1, query.shape[0], 2) if layouts[0] == "TND" else (query.shape[0], 1, query.shape[1], 2)
        assert largest.shape == total.shape == shape
        assert bool(((total > 0) == ~largest.isneginf()).all())
    else:
        assert largest.shape == total.shape == (0,)


def test_the_sums_are_those_of_the_scores():
    queries, keys = sequences.make([2], 2, 6, torch.bfloat16, 0), sequences.make([5], 1, 6, torch.bfloat16, 1)
    query, key = (sequences.lay_out(x, "BSND", torch.bfloat16) for x in (queries, keys))
    indices = torch.tensor([[4, 0, -1], [2, 3, 1]], dtype=torch.int32).view(1, 2, 1, 3)
    _, largest, total = sparse_flash_attention(
        query[..., :4],
        key[..., :4],
        None,
        indices,
        0.5,
        query_rope=query[..., 4:],
        key_rope=key[..., 4:],
        sparse_mode=0,
        attention_mode=2,
        return_softmax_lse=True,
    )
    for i, chosen in enumerate(([4, 0], [2, 3, 1])):
        for n in range(2):
            scores = [0.5 * float(queries[0][n, i] @ keys[0][0, j]) for j in chosen]
            assert largest[0, 0, i, n].item() == pytest.approx(max(scores), rel=1e-5)
            assert total[0, 0, i, n].item() == pytest.approx(sum(np.exp(np.array(scores) - max(scores))), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(LENGTHS, LAYOUTS, DTYPES, st.integers(0, 99))
def test_attention_over_an_int8_cache(lengths, layouts, dtype, seed):
    q_lengths, k_lengths = (list(x) for x in zip(*lengths))
    width, rope, tile = 8, 4, 4
    queries, generator = sequences.make(q_lengths, 2, width + rope, dtype, seed), np.random.default_rng(seed)
    rope_k = sequences.make(k_lengths, 1, rope, dtype, seed + 1)
    elements = [generator.integers(-128, 128, (1, n, width)) for n in k_lengths]
    scales = [generator.random((1, n, width // tile)).astype(np.float32) / 99 for n in k_lengths]
    rounded = [
        torch.tensor(x.astype(np.float32) * s.repeat(tile, 2)).to(dtype).double().numpy()
        for x, s in zip(elements, scales)
    ]
    caches = []
    for x, r, s in zip(elements, rope_k, scales):
        parts = (
            torch.tensor(x).to(torch.int8),
            torch.tensor(r).to(dtype).view(torch.int8),
            torch.tensor(s).view(torch.int8),
        )
        caches.append(torch.cat(parts, -1).numpy())
    chosen = choices(q_lengths, k_lengths, 1, 4, seed)
    (query, indices), (key,), tell, key_lengths = laid_out(
        q_lengths, k_lengths, layouts, 4, seed, ((queries, dtype), (chosen, torch.int32)), ((caches, torch.int8),)
    )
    output = kv_quant_sparse_flash_attention(
        query,
        key,
        key[..., :width],
        indices,
        0.3,
        2,
        2,
        **tell,
        layout_kv=layouts[1],
        actual_seq_lengths_kv=key_lengths,
        attention_mode=2,
        tile_size=tile,
        rope_head_dim=rope,
    )
    whole = [np.concatenate(pair, 2) for pair in zip(rounded, rope_k)]
    expected = by_loops(queries, whole, rounded, chosen, q_lengths, k_lengths, 1, 3, None)
    sequences.assert_close(sequences.read(output, layouts[0], q_lengths, 2), expected, dtype)


def test_what_is_excluded_is_named():
    x = torch.zeros(1, 2, 2, 4, dtype=torch.float16)
    key, indices = x[:, :, :1], torch.zeros(1, 2, 1, 3, dtype=torch.int32)
    rope = {"query_rope": x, "key_rope": key}

    def refuses(match, function, *arguments, **more):
        with pytest.raises(ValueError, match=match):
            function(*arguments, **more)

    refuses("attention_mode must be one of 2, got 0", sparse_flash_attention, x, key, key, indices, 1.0, **rope)
    refuses(
        "query_rope and key_rope must be given", sparse_flash_attention, x, key, key, indices, 1.0, attention_mode=2
    )
    refuses(
        "sparse_indices must be blocks of the sequence.*got 7",
        *(sparse_flash_attention, x, key, key, indices + 7, 1.0),
        **rope,
        attention_mode=2,
    )
    refuses("sparse_mode must be one of 0, 3, got 4", lightning_indexer, x, key, x[..., 0], sparse_mode=4)
    refuses("pre_tokens must be one of", lightning_indexer, x, key, x[..., 0], pre_tokens=5)
    refuses("key must be of one head of 4", lightning_indexer, x, x, x[..., 0])
    refuses(
        "layout_key must be BSND, that of the queries, or PA_BSND",
        lightning_indexer,
        x,
        key,
        x[..., 0],
        layout_key="TND",
    )
    refuses(
        "block_table must be given with layout_key PA_BSND", lightning_indexer, x, key, x[..., 0], layout_key="PA_BSND"
    )
    refuses("weights must be of shape", lightning_indexer, x, key, x[..., :1, 0])
