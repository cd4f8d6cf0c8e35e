"""npu_prompt_flash_attention and npu_incre_flash_attention on CPU tensors, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import sequences
from moe_graph.operators.attention.incre_flash_attention import incre_flash_attention
from moe_graph.operators.attention.prompt_flash_attention import prompt_flash_attention

DTYPES = st.sampled_from([torch.float16, torch.bfloat16])


@settings(max_examples=50, deadline=None)
@given(
    st.data(),
    st.sampled_from(["BSH", "BSND", "BNSD", "BNSD_BSND", "NSD", "TND"]),
    DTYPES,
    st.sampled_from([0, 1, 2, 3, 4, 10, 13]),
    st.integers(0, 99),
)
def test_prompts(data, layout, dtype, mode, seed):
    batch, kv_heads, groups = (
        1 if layout == "NSD" else data.draw(st.integers(1, 3)),
        *(data.draw(st.integers(1, 2)) for _ in "ab"),
    )
    heads, given_layout, packed = kv_heads * groups, layout.partition("_")[0], layout == "TND"
    q_lengths, k_lengths = (data.draw(st.lists(st.integers(1, 5), min_size=batch, max_size=batch)) for _ in "qk")
    pre, following = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    queries = sequences.make(q_lengths, heads, 4, dtype, seed)
    keys, values = (sequences.make(k_lengths, kv_heads, 4, dtype, seed + i) for i in (1, 2))
    plain, hidden = mode % 10, None
    if plain in (0, 1) and not packed:
        hidden = np.random.default_rng(seed).random((batch, max(q_lengths), max(k_lengths))) < 0.3

    def sees(b, i, j):
        shift = k_lengths[b] - q_lengths[b]
        band = {
            0: hidden is None or -pre <= j - i <= following,
            1: True,
            2: j <= i,
            3: j <= i + shift,
            4: -pre <= j - i - shift <= following,
        }[plain]
        return band and (hidden is None or not hidden[b, i, j])

    def laid(x):
        if layout == "NSD":
            return sequences.lay_out(x, "BNSD", dtype)[0]
        return sequences.lay_out(x, given_layout, dtype, fill=0)

    if plain == 1 and hidden is None:
        return
    mask = sequences.triangle() if plain in (2, 3, 4) else None if hidden is None else torch.tensor(hidden)
    output = prompt_flash_attention(
        laid(queries),
        laid(keys),
        laid(values),
        atten_mask=mask,
        actual_seq_lengths=sequences.ends(q_lengths) if packed else q_lengths,
        actual_seq_lengths_kv=sequences.ends(k_lengths) if packed else k_lengths,
        num_heads=heads,
        num_key_value_heads=kv_heads,
        scale_value=0.3,
        pre_tokens=pre,
        next_tokens=following,
        input_layout=layout,
        sparse_mode=mode,
    )
    expected, _ = sequences.attention(queries, keys, values, 0.3, sees)
    output = output[None] if layout == "NSD" else output
    read_as = "BNSD" if layout == "NSD" else layout.rpartition("_")[2]
    assert output.dtype == dtype
    sequences.assert_close(sequences.read(output, read_as, q_lengths, heads), expected, dtype)


@settings(max_examples=40, deadline=None)
@given(
    st.data(),
    st.sampled_from(["BSH", "BSND", "BNSD"]),
    DTYPES,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_single_steps(data, layout, dtype, is_paged, with_mask, with_bias, seed):
    batch, kv_heads, groups = (data.draw(st.integers(1, 3)) for _ in range(3))
    heads = kv_heads * groups
    lengths = data.draw(st.lists(st.integers(0 if not is_paged else 1, 7), min_size=batch, max_size=batch))
    queries = sequences.make([1] * batch, heads, 4, dtype, seed)
    keys, values = (sequences.make(lengths, kv_heads, 4, dtype, seed + i) for i in (1, 2))
    more, room = {"actual_seq_lengths": lengths}, 8
    if is_paged:
        form = data.draw(st.sampled_from(["BnBsH", "BnNBsD"]))
        key, more["block_table"] = sequences.pages(keys, 4, form, dtype, seed)
        value, _ = sequences.pages(values, 4, form, dtype, seed)
        more["block_size"] = 4
    else:
        key, value = (sequences.lay_out(x, layout, dtype, rows=room) for x in (keys, values))
    generator = np.random.default_rng(seed)
    hidden = generator.random((batch, room)) < (0.3 if with_mask else 0)
    bias = torch.tensor(generator.standard_normal((batch, heads, 1, room))).to(dtype)
    output = incre_flash_attention(
        sequences.lay_out(queries, layout, dtype),
        key,
        value,
        **more,
        atten_mask=torch.tensor(hidden) if with_mask else None,
        pse_shift=bias if with_bias else None,
        num_heads=heads,
        num_key_value_heads=kv_heads,
        scale_value=0.3,
        input_layout=layout,
    )
    expected, _ = sequences.attention(
        queries, keys, values, 0.3, lambda b, i, j: not hidden[b, j], bias.double().numpy() if with_bias else None
    )
    sequences.assert_close(sequences.read(output, layout, [1] * batch, heads), expected, dtype)


def test_left_padding_of_single_steps():
    queries, keys = sequences.make([1, 1], 1, 4, torch.float16, 0), sequences.make([2, 4], 1, 4, torch.float16, 1)
    cache = torch.full((2, 1, 5, 4), torch.nan)
    cache[0, 0, 1:3] = torch.tensor(keys[0])
    cache = cache.half()
    output = incre_flash_attention(
        sequences.lay_out(queries, "BNSD", torch.float16),
        cache,
        cache,
        actual_seq_lengths=[2, 4],
        kv_padding_size=torch.tensor([2]),
        input_layout="BNSD",
    )
    expected, _ = sequences.attention(queries[:1], keys[:1], keys[:1], 1.0, lambda *_: True)
    sequences.assert_close([output[0].double().numpy()], expected, torch.float16)
    assert not output[1].any()  # four rows do not fit before the two: as the page says, zeros


def test_what_is_excluded_is_named():
    x = torch.zeros(2, 3, 4, dtype=torch.float16)
    with pytest.raises(ValueError, match="npu_incre_flash_attention: query must be of one row"):
        incre_flash_attention(x, x, x)
    with pytest.raises(ValueError, match="quant_scale1 must be None .which is of queries of int8"):
        incre_flash_attention(x[:, :1], x, x, quant_scale1=torch.ones(1))
    with pytest.raises(ValueError, match="npu_prompt_flash_attention: sparse_mode must be one of .*got 9"):
        prompt_flash_attention(x, x, x, sparse_mode=9)
    with pytest.raises(ValueError, match="deq_scale1, quant_scale1, deq_scale2 must be given with a query of int8"):
        prompt_flash_attention(*(x.to(torch.int8),) * 3)
