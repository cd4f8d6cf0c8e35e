"""Quantised keys, values, queries and outputs of attention of inference, against plain loops of the dequantised numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import sequences
from moe_graph.operators.attention.fused_infer_attention_score import fused_infer_attention_score
from moe_graph.operators.attention.fused_infer_attention_score_v2 import fused_infer_attention_score_v2
from moe_graph.operators.attention.incre_flash_attention import incre_flash_attention

HEADS, KV_HEADS, WIDTH, BATCH, ROWS, BLOCK = 4, 2, 32, 2, 6, 3
DTYPE = torch.bfloat16


def integers(rng, low=-128, high=128):
    """Keys or values of all sequences, [K, S, D] each, whole numbers."""
    return [rng.integers(low, high, (KV_HEADS, ROWS, WIDTH)).astype(float) for _ in range(BATCH)]


def scales(rng, mode):
    """A scale of the mode as the operator takes it, and for each sequence what multiplies [K, S, D]."""
    if mode == "tensor":
        value = np.float32(rng.random() / 64)
        return torch.tensor([value]), [np.full((1, 1, 1), value)] * BATCH
    shape = {
        "channel": (KV_HEADS, 1, WIDTH),
        "channel H": (KV_HEADS, 1, WIDTH),
        "token": (BATCH, 1, ROWS, 1),
        "head": (KV_HEADS, 1, 1),
        "token and head": (BATCH, KV_HEADS, ROWS, 1),
    }[mode]
    value = (rng.random(shape) / 64).astype(np.float32)
    given = {
        "channel": (KV_HEADS, WIDTH),
        "channel H": (1, KV_HEADS * WIDTH),
        "token": (1, BATCH, ROWS),
        "head": (KV_HEADS,),
        "token and head": (BATCH, KV_HEADS, ROWS),
    }[mode]
    return torch.tensor(value).reshape(given), list(value) if "token" in mode else [value] * BATCH


MODES = {"tensor": 0, "channel": 0, "channel H": 0, "token": 1, "head": 2, "token and head": 3}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(MODES)), st.sampled_from(["BSH", "BNSD"]), st.booleans(), st.booleans(), st.integers(0, 99))
def test_keys_and_values_with_scales_of_their_own(mode, layout, with_offset, is_int4, seed):
    rng = np.random.default_rng(seed)
    low, high = (-8, 8) if is_int4 else (-128, 128)
    keys, values = integers(rng, low, high), integers(rng, low, high)
    (key_scale, key_factors), (value_scale, value_factors) = scales(rng, mode), scales(rng, mode)
    offsets = [torch.tensor(rng.integers(-3, 4, tuple(key_scale.shape))).float() if with_offset else None for _ in "kv"]
    queries = sequences.make([1] * BATCH, HEADS, WIDTH, DTYPE, seed)

    def laid(x):
        if not is_int4:
            return sequences.lay_out(x, layout, torch.int8)
        packed = []
        for part in x:
            nibbles = part.astype(np.int64) & 15
            words = sum(nibbles[..., i::8] << (4 * i) for i in range(8))
            packed.append(words.astype(np.uint32).view(np.int32).astype(float))
        return sequences.lay_out(packed, layout, torch.int32)

    def widened(x, factors, offset):
        shifts = [0] * BATCH
        if offset is not None and "token" in mode:
            heads = KV_HEADS if "head" in mode else 1
            shifts = offset.numpy().reshape(BATCH, heads, ROWS, 1)
        elif offset is not None:
            shifts = [offset.numpy().reshape(factors[0].shape)] * BATCH
        return [(part + shift) * factor for part, shift, factor in zip(x, shifts, factors)]

    output, _ = fused_infer_attention_score(
        sequences.lay_out(queries, layout, DTYPE),
        laid(keys),
        laid(values),
        key_antiquant_scale=key_scale,
        value_antiquant_scale=value_scale,
        key_antiquant_offset=offsets[0],
        value_antiquant_offset=offsets[1],
        key_antiquant_mode=MODES[mode],
        value_antiquant_mode=MODES[mode],
        num_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        input_layout=layout,
        scale=0.1,
    )
    whole = widened(keys, key_factors, offsets[0]), widened(values, value_factors, offsets[1])
    expected, _ = sequences.attention(queries, *whole, 0.1, lambda *_: True)
    sequences.assert_close(sequences.read(output, layout, [1] * BATCH, HEADS), expected, DTYPE)


@pytest.mark.parametrize("form", ["BnBsH", "BnNBsD", "NZ"])
@pytest.mark.parametrize("per_head", [False, True])
def test_scales_in_pages(form, per_head):
    rng = np.random.default_rng(0)
    keys, values = integers(rng), integers(rng)
    queries = sequences.make([1] * BATCH, HEADS, WIDTH, DTYPE, 0)
    heads = KV_HEADS if per_head else 1
    key_factors, value_factors = ([rng.random((heads, ROWS, 1)) / 64 for _ in range(BATCH)] for _ in "kv")
    key, table = sequences.pages(keys, BLOCK, form, torch.int8, 0, strip=32)
    value, _ = sequences.pages(values, BLOCK, form, torch.int8, 0, strip=32)
    key_scale, value_scale = (
        sequences.pages(x, BLOCK, "BnNBsD", torch.float32, 0)[0].squeeze(-1) for x in (key_factors, value_factors)
    )
    output, _ = fused_infer_attention_score_v2(
        sequences.lay_out(queries, "BNSD", DTYPE),
        key,
        value,
        dequant_scale_key=key_scale if per_head else key_scale.squeeze(1),
        dequant_scale_value=value_scale if per_head else value_scale.squeeze(1),
        key_quant_mode=5 if per_head else 4,
        value_quant_mode=5 if per_head else 4,
        block_table=table,
        block_size=BLOCK,
        actual_seq_kvlen=[ROWS] * BATCH,
        num_query_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        input_layout="BNSD",
        softmax_scale=0.1,
    )
    whole = [
        [np.float32(f) * x for f, x in zip(factors, of)]
        for factors, of in ((key_factors, keys), (value_factors, values))
    ]
    expected, _ = sequences.attention(queries, *whole, 0.1, lambda *_: True)
    sequences.assert_close(sequences.read(output, "BNSD", [1] * BATCH, HEADS), expected, DTYPE)


def test_scales_of_keys_and_values_in_one():
    rng = np.random.default_rng(0)
    keys, values = integers(rng), integers(rng)
    queries = sequences.make([1] * BATCH, HEADS, WIDTH, DTYPE, 0)
    scale = (rng.random((2, KV_HEADS, 1, WIDTH)) / 64).astype(np.float32)
    offset = rng.integers(-3, 4, (2, KV_HEADS, 1, WIDTH)).astype(np.float32)
    whole = [[(x + offset[i]) * scale[i] for x in of] for i, of in enumerate((keys, values))]
    expected, _ = sequences.attention(queries, *whole, 0.1, lambda *_: True)
    arguments = {
        "query": sequences.lay_out(queries, "BNSD", DTYPE),
        "key": sequences.lay_out(keys, "BNSD", torch.int8),
        "value": sequences.lay_out(values, "BNSD", torch.int8),
        "antiquant_scale": torch.tensor(scale),
        "antiquant_offset": torch.tensor(offset),
        "num_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "input_layout": "BNSD",
    }
    for output in (
        fused_infer_attention_score(**arguments, scale=0.1)[0],
        incre_flash_attention(**arguments, scale_value=0.1),
    ):
        sequences.assert_close(sequences.read(output, "BNSD", [1] * BATCH, HEADS), expected, DTYPE)


@pytest.mark.parametrize("as_bits", [False, True])
@pytest.mark.parametrize("to_int8", [False, True])
def test_int8_queries(as_bits, to_int8):
    rng = np.random.default_rng(1)
    query, key, value = rng.integers(-20, 21, (3, 1, 1, 4, WIDTH)).astype(float)
    scores_scale, probabilities_scale, output_scale = 2.0**-6, 127.0, 2.0**-7
    scale2, offset2 = np.float32(0.5), np.float32(3.0)
    scores = np.float32(query[0, 0] @ key[0, 0].T) * np.float32(scores_scale) * np.float32(0.25)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    rounded = np.round(exponentials * probabilities_scale)
    expected = rounded @ value[0, 0] / exponentials.sum(-1, keepdims=True) * output_scale
    factors = [torch.tensor([scores_scale]), torch.tensor([output_scale])]
    if as_bits:  # as npu_trans_quant_param gives them
        factors = [x.view(torch.int32).long() for x in factors]
    output, _ = fused_infer_attention_score(
        *(torch.tensor(x).to(torch.int8) for x in (query, key, value)),
        dequant_scale1=factors[0],
        quant_scale1=torch.tensor([probabilities_scale]),
        dequant_scale2=factors[1],
        quant_scale2=torch.tensor([scale2]) if to_int8 else None,
        quant_offset2=torch.tensor([offset2]) if to_int8 else None,
        input_layout="BNSD",
        scale=0.25,
    )
    if not to_int8:
        assert output.dtype == torch.float16
        np.testing.assert_allclose(output[0, 0].double().numpy(), expected, rtol=2e-3, atol=2e-3)
        return
    assert output.dtype == torch.int8
    wanted = expected * scale2 + offset2
    assert np.abs(output[0, 0].numpy() - wanted).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("layout", ["BSH", "BNSD_BSND"])
def test_the_output_is_rounded_to_int8_by_channel(layout):
    queries, keys, values = (sequences.make([3], 2, 4, torch.float16, seed) for seed in range(3))
    rng = np.random.default_rng(0)
    scale, offset = rng.random((2, 1, 4)) * 30, rng.integers(-3, 4, (2, 1, 4))
    given_layout = layout.partition("_")[0]
    output, _ = fused_infer_attention_score(
        *(sequences.lay_out(x, given_layout, torch.float16) for x in (queries, keys, values)),
        quant_scale2=torch.tensor(scale).float().flatten(),
        quant_offset2=torch.tensor(offset).float().flatten(),
        num_heads=2,
        input_layout=layout,
    )
    expected, _ = sequences.attention(queries, keys, values, 1.0, lambda *_: True)
    (found,) = sequences.read(output, layout.rpartition("_")[2], [3], 2)
    assert output.dtype == torch.int8 and np.abs(found - (expected[0] * scale + offset)).max() <= 0.5 + 1e-3


def test_int8_latent_attention():
    rng, block = np.random.default_rng(0), 4
    lengths = [5, 3]
    keys = [rng.integers(-128, 128, (1, n, 32)).astype(float) for n in lengths]
    queries = [rng.integers(-128, 128, (4, 1, 32)).astype(float) for _ in lengths]
    q_factors = [rng.random((4, 1, 1)).astype(np.float32) / 64 for _ in lengths]
    rope_q, rope_k = (sequences.make(n, heads, 16, DTYPE, heads) for n, heads in (([1, 1], 4), (lengths, 1)))
    cache, table = sequences.pages(keys, block, "NZ", torch.int8, 0, strip=32)
    key_rope, _ = sequences.pages(rope_k, block, "NZ", DTYPE, 0)
    output, _ = fused_infer_attention_score_v2(
        sequences.lay_out(queries, "TND", torch.int8),
        cache,
        cache,
        query_rope=sequences.lay_out(rope_q, "TND", DTYPE),
        key_rope=key_rope,
        dequant_scale_query=sequences.lay_out(q_factors, "TND", torch.float32),
        dequant_scale_key=torch.tensor([0.01]),
        dequant_scale_value=torch.tensor([0.01]),
        query_quant_mode=3,
        block_table=table,
        block_size=block,
        actual_seq_qlen=[1, 2],
        actual_seq_kvlen=lengths,
        num_query_heads=4,
        num_key_value_heads=1,
        input_layout="TND_NTD",
        softmax_scale=0.2,
    )
    values = [np.float32(0.01) * x for x in keys]
    whole_q = [np.concatenate([f * x, r], 2) for f, x, r in zip(q_factors, queries, rope_q)]
    whole_k = [np.concatenate(pair, 2) for pair in zip(values, rope_k)]
    expected, _ = sequences.attention(whole_q, whole_k, values, 0.2, lambda *_: True)
    assert output.dtype == DTYPE
    sequences.assert_close(sequences.read(output, "NTD", [1, 1], 4), expected, DTYPE)


def test_a_scale_that_fits_no_mode_is_refused():
    x, q = torch.zeros(2, 2, 4, 8, dtype=torch.int8), torch.zeros(2, 2, 1, 8, dtype=torch.float16)
    more = {"num_heads": 2, "input_layout": "BNSD", "value_antiquant_scale": torch.ones(3)}
    for key_mode, value_mode, match in (
        (0, 0, "key_antiquant_scale must be of a shape of its mode 0"),
        (0, 2, "alike, or 0 and 1"),
    ):
        with pytest.raises(ValueError, match=match):
            fused_infer_attention_score(
                q,
                x,
                x,
                key_antiquant_scale=torch.ones(3),
                key_antiquant_mode=key_mode,
                value_antiquant_mode=value_mode,
                **more,
            )
