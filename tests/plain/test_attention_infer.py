"""npu_fused_infer_attention_score's reference on CPU tensors, against plain loops over sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import sequences
from moe_graph.operators.attention.fused_infer_attention_score import LAYOUTS, fused_infer_attention_score
from moe_graph.operators.attention.fused_infer_attention_score_v2 import fused_infer_attention_score_v2

DTYPES = st.sampled_from([torch.float16, torch.bfloat16])
LAYOUT = st.sampled_from([layout for layout in LAYOUTS if layout != "NSD"])
SCALE = 0.3


def visible(mode, q_lengths, kv_lengths, pre, following):
    def sees(b, i, j):
        shift = kv_lengths[b] - q_lengths[b]
        return {
            0: True,
            2: j <= i,
            3: j <= i + shift,
            4: -pre <= j - i - shift <= following,
        }[mode]

    return sees


@settings(max_examples=80, deadline=None)
@given(st.data(), LAYOUT, DTYPES, st.sampled_from([0, 2, 3, 4]), st.booleans(), st.booleans(), st.integers(0, 99))
def test_layouts_modes_lengths_rope_and_lse(data, layout, dtype, mode, with_rope, want_lse, seed):
    batch, kv_heads, groups = (data.draw(st.integers(1, 3)) for _ in range(3))
    heads, given_layout = kv_heads * groups, layout.partition("_")[0]
    q_lengths = data.draw(st.lists(st.integers(1, 5), min_size=batch, max_size=batch))
    kv_lengths = data.draw(st.lists(st.integers(0, 7), min_size=batch, max_size=batch))
    pre, following = data.draw(st.integers(-1, 4)), data.draw(st.integers(-1, 4))
    width, value_width = (4, 4) if given_layout == "BSH" else (4, 6)
    queries = sequences.make(q_lengths, heads, width, dtype, seed)
    keys = sequences.make(kv_lengths, kv_heads, width, dtype, seed + 1)
    values = sequences.make(kv_lengths, kv_heads, value_width, dtype, seed + 2)
    rope_q = sequences.make(q_lengths, heads, 2, dtype, seed + 3)
    rope_k = sequences.make(kv_lengths, kv_heads, 2, dtype, seed + 4)
    packed = given_layout in ("TND", "NTD")
    rows = {} if packed else {"rows": max(q_lengths) + seed % 2}
    key_rows = {} if packed else {"rows": max(kv_lengths) + seed % 3}
    arguments = {
        "num_heads": heads,
        "num_key_value_heads": kv_heads,
        "input_layout": layout,
        "scale": SCALE,
        "sparse_mode": mode,
        "atten_mask": sequences.triangle() if mode else None,
        "pre_tokens": pre,
        "next_tokens": following,
        "softmax_lse_flag": want_lse,
        "actual_seq_lengths": sequences.ends(q_lengths) if packed else q_lengths,
        "actual_seq_lengths_kv": torch.tensor(sequences.ends(kv_lengths) if packed else kv_lengths),
    }
    if with_rope:
        arguments["query_rope"] = sequences.lay_out(rope_q, given_layout, dtype, **rows)
        arguments["key_rope"] = sequences.lay_out(rope_k, given_layout, dtype, **key_rows)
        queries_of, keys_of = (
            [np.concatenate(pair, 2) for pair in zip(*both)] for both in ((queries, rope_q), (keys, rope_k))
        )
    else:
        queries_of, keys_of = queries, keys
    is_step = not packed and rows["rows"] == 1 and not with_rope
    sees = visible(0 if is_step else mode, q_lengths, kv_lengths, pre, following)
    expected, lse = sequences.attention(queries_of, keys_of, values, SCALE, sees)
    tensors = (
        sequences.lay_out(queries, given_layout, dtype, fill=0, **rows),
        sequences.lay_out(keys, given_layout, dtype, **key_rows),
        sequences.lay_out(values, given_layout, dtype, **key_rows),
    )
    output, found_lse = fused_infer_attention_score(*tensors, **arguments)
    assert output.dtype == dtype and output.is_contiguous()
    sequences.assert_close(sequences.read(output, layout.rpartition("_")[2], q_lengths, heads), expected, dtype)
    if not want_lse:
        assert found_lse.shape == (0,)
        return
    found = sequences.read(found_lse, "TND" if packed else "BNSD", q_lengths, heads)
    sequences.assert_close([x[..., 0] for x in found], lse, torch.float32)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["BSH", "BNSD", "TND", "TND_NTD", "BSND_NBSD"]), DTYPES, st.integers(0, 99))
def test_paged_caches_in_their_forms(data, layout, dtype, seed):
    batch, kv_heads, groups, block_size = (data.draw(st.integers(1, 3)) for _ in range(4))
    form, width = data.draw(st.sampled_from(["BnBsH", "BnNBsD", "NZ"])), 32
    heads, given_layout, packed = kv_heads * groups, layout.partition("_")[0], layout.startswith("TND")
    q_lengths = [data.draw(st.integers(1, 3))] * batch
    kv_lengths = data.draw(st.lists(st.integers(0, 7), min_size=batch, max_size=batch))
    queries = sequences.make(q_lengths, heads, width, dtype, seed)
    keys = sequences.make(kv_lengths, kv_heads, width, dtype, seed + 1)
    values = sequences.make(kv_lengths, kv_heads, width, dtype, seed + 2)
    key, table = sequences.pages(keys, block_size, form, dtype, seed)
    value, _ = sequences.pages(values, block_size, form, dtype, seed)
    mode = 3 if max(q_lengths) > 1 else 0
    output, _ = fused_infer_attention_score(
        sequences.lay_out(queries, given_layout, dtype),
        key,
        value,
        block_table=table,
        block_size=block_size,
        actual_seq_lengths=sequences.ends(q_lengths) if packed else None,
        actual_seq_lengths_kv=kv_lengths,
        input_layout=layout,
        num_heads=heads,
        num_key_value_heads=kv_heads,
        scale=SCALE,
        sparse_mode=mode,
        atten_mask=sequences.triangle() if mode else None,
    )
    sees = visible(mode, q_lengths, kv_lengths, 0, 0)
    expected, _ = sequences.attention(queries, keys, values, SCALE, sees)
    sequences.assert_close(sequences.read(output, layout.rpartition("_")[2], q_lengths, heads), expected, dtype)


@settings(max_examples=30, deadline=None)
@given(st.data(), DTYPES, st.sampled_from([0, 1]), st.booleans(), st.integers(0, 99))
def test_masks_and_pse(data, dtype, mode, with_bias, seed):
    batch, heads, rows, keys_count = (
        data.draw(st.integers(1, 3)),
        2,
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 5)),
    )
    generator = np.random.default_rng(seed)
    hidden = generator.random((data.draw(st.sampled_from([1, batch])), 1, rows + 1, keys_count + 2)) < 0.4
    bias = generator.standard_normal((1, heads, rows, keys_count)).astype(np.float16)
    pre, following = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    queries = sequences.make([rows] * batch, heads, 4, dtype, seed)
    keys = sequences.make([keys_count] * batch, heads, 4, dtype, seed + 1)
    values = sequences.make([keys_count] * batch, heads, 4, dtype, seed + 2)

    def sees(b, i, j):
        band = mode == 1 or rows == 1 or -pre <= j - i <= following
        return band and not hidden[b % len(hidden), 0, i, j]

    bias_tensor = torch.tensor(bias).to(dtype)
    expected, _ = sequences.attention(
        queries, keys, values, SCALE, sees, [bias_tensor[0].double().numpy()] * batch if with_bias else None
    )
    output, _ = fused_infer_attention_score(
        *(sequences.lay_out(x, "BSND", dtype) for x in (queries, keys, values)),
        atten_mask=torch.tensor(hidden),
        pse_shift=bias_tensor if with_bias else None,
        sparse_mode=mode,
        pre_tokens=pre,
        next_tokens=following,
        num_heads=heads,
        input_layout="BSND",
        scale=SCALE,
    )
    sequences.assert_close(sequences.read(output, "BSND", [rows] * batch, heads), expected, dtype)


def test_sinks_take_a_share():
    queries, keys, values = (sequences.make([3, 2], 2, 8, torch.bfloat16, seed) for seed in range(3))
    sink = torch.tensor([0.5, -2.0]).bfloat16()
    expected, lse = sequences.attention(
        queries, keys, values, SCALE, visible(3, [3, 2], [3, 2], 0, 0), sink=sink.tolist()
    )
    for want_lse in (False, True):
        output, found = fused_infer_attention_score_v2(
            *(sequences.lay_out(x, "TND", torch.bfloat16) for x in (queries, keys, values)),
            learnable_sink=sink,
            num_query_heads=2,
            input_layout="TND",
            softmax_scale=SCALE,
            sparse_mode=3,
            atten_mask=sequences.triangle(),
            actual_seq_qlen=[3, 5],
            actual_seq_kvlen=[3, 5],
            return_softmax_lse=want_lse,
        )
        sequences.assert_close(sequences.read(output, "TND", [3, 2], 2), expected, torch.bfloat16)
    sequences.assert_close([x[..., 0] for x in sequences.read(found, "TND", [3, 2], 2)], lse, torch.float32)


def test_left_padding():
    queries, keys, values = (sequences.make([2, 3], 2, 4, torch.float16, seed) for seed in range(3))

    def padded(x):  # two rows behind, the rest before
        result = torch.full((2, 2, 7, 4), torch.nan)
        for b, part in enumerate(x):
            result[b, :, 5 - part.shape[1] : 5] = torch.tensor(part)
        return result.half()

    expected, _ = sequences.attention(queries, keys, values, SCALE, visible(3, [2, 3], [2, 3], 0, 0))
    query = padded(queries).nan_to_num(0)
    output, _ = fused_infer_attention_score(
        query,
        padded(keys),
        padded(values),
        query_padding_size=torch.tensor([2]),
        kv_padding_size=torch.tensor([2]),
        actual_seq_lengths=[2, 3],
        actual_seq_lengths_kv=[2, 3],
        atten_mask=sequences.triangle(),
        sparse_mode=3,
        num_heads=2,
        input_layout="BNSD",
        scale=SCALE,
    )
    found = [output[0, :, 3:5].double().numpy(), output[1, :, 2:5].double().numpy()]
    sequences.assert_close(found, expected, torch.float16)
    assert not output[0, :, :3].any() and not output[:, :, 5:].any()


def test_a_shared_prefix_comes_first():
    prefix_k, prefix_v = (sequences.make([3], 1, 4, torch.float16, seed) for seed in (7, 8))
    queries, keys, values = (
        sequences.make([2, 2], heads, 4, torch.float16, seed) for seed, heads in enumerate((2, 1, 1))
    )
    whole_k, whole_v = (
        [np.concatenate([p[0][:, :2], x], 1) for x in own] for p, own in ((prefix_k, keys), (prefix_v, values))
    )
    expected, _ = sequences.attention(queries, whole_k, whole_v, SCALE, lambda b, i, j: j <= i + 2)
    output, _ = fused_infer_attention_score(
        *(sequences.lay_out(x, "BSH", torch.float16) for x in (queries, keys, values)),
        key_shared_prefix=sequences.lay_out(prefix_k, "BSH", torch.float16),
        value_shared_prefix=sequences.lay_out(prefix_v, "BSH", torch.float16),
        actual_shared_prefix_len=[2],
        num_heads=2,
        num_key_value_heads=1,
        scale=SCALE,
        sparse_mode=3,
        atten_mask=sequences.triangle(),
    )
    sequences.assert_close(sequences.read(output, "BSH", [2, 2], 2), expected, torch.float16)


def test_drafted_tokens_see_their_tree():
    tree = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]])  # two tokens that follow the first
    queries, keys, values = (sequences.make([3] if seed == 0 else [6], 1, 8, torch.bfloat16, seed) for seed in range(3))
    expected, _ = sequences.attention(queries, keys, values, 1.0, lambda b, i, j: j < 3 or tree[i, j - 3])
    nope, rope = (slice(0, 6), slice(6, 8))
    for layout, mask in (
        ("BNSD", torch.tensor(1 - tree)[None].bool()),
        ("TND", torch.tensor(1 - tree).flatten().bool()),
    ):
        query, key, value = (sequences.lay_out(x, layout, torch.bfloat16) for x in (queries, keys, values))
        output, _ = fused_infer_attention_score_v2(
            query[..., nope],
            key[..., nope],
            value,
            query_rope=query[..., rope],
            key_rope=key[..., rope],
            sparse_mode=9,
            atten_mask=mask,
            input_layout=layout,
            actual_seq_qlen=[3],
            actual_seq_kvlen=[6],
        )
        sequences.assert_close(sequences.read(output, layout, [3], 1), expected, torch.bfloat16)


def refuses(match, **changed):
    x = torch.zeros(2, 2, 4, 8, dtype=torch.float16)
    arguments = {"query": x, "key": x, "value": x, "num_heads": 2, "input_layout": "BNSD", **changed}
    with pytest.raises(ValueError, match=match):
        fused_infer_attention_score(**arguments)


def test_what_is_excluded_is_named():
    x = torch.zeros(2, 2, 4, 8, dtype=torch.float16)
    refuses("input_layout must be one of .*'BSNH'", input_layout="BSNH")
    refuses("sparse_mode must be one of 0, 1, 2, 3, 4, got 5", sparse_mode=5)
    refuses("atten_mask must be the upper triangle of 2048 x 2048", sparse_mode=3)
    refuses("atten_mask must be the upper triangle.*another", sparse_mode=3, atten_mask=~sequences.triangle())
    refuses("atten_mask must be given in sparse_mode 1", sparse_mode=1)
    refuses("num_key_value_heads must be 0 or a divisor", num_key_value_heads=3)
    refuses("query must be BNSD with 3 heads", num_heads=3)
    refuses("actual_seq_lengths_kv must be 1 or 2 lengths from 0 to 4", actual_seq_lengths_kv=[4, 5])
    refuses(
        "actual_seq_lengths_kv must be given with block_table",
        block_table=torch.zeros(2, 1, dtype=torch.int32),
        block_size=4,
    )
    refuses("key_rope must be given together with query_rope", query_rope=x)
    refuses("key must be of dtype torch.float16", key=x.bfloat16())
    refuses("query must be of dtype", query=x.float(), key=x.float(), value=x.float())
    cache, table = torch.zeros(3, 2, 4, 8, dtype=torch.float16), torch.tensor([[0], [7]], dtype=torch.int32)
    refuses(
        "block_table must be of blocks from 0 to 2",
        key=cache,
        value=cache,
        block_table=table,
        block_size=4,
        actual_seq_lengths_kv=[4],
    )
