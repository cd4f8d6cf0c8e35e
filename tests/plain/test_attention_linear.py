"""The gated delta rules and the merging of attention's parts on CPU tensors, against plain loops from the documents' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_graph.operators.attention.attention_update import attention_update
from moe_graph.operators.attention.chunk_gated_delta_rule import chunk_gated_delta_rule
from moe_graph.operators.attention.recurrent_gated_delta_rule import (
    recurrent_gated_delta_rule,
    recurrent_gated_delta_rule_functional,
)
from moe_graph.operators.attention.ring_attention_update import ring_attention_update

HALF = torch.bfloat16


def inputs(tokens, key_heads, groups, seed, key_width=4, width=3):
    generator = torch.Generator().manual_seed(seed)
    heads = key_heads * groups

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1).to(HALF)

    return {
        "query": unit(tokens, key_heads, key_width),
        "key": unit(tokens, key_heads, key_width),
        "value": torch.randn(tokens, heads, width, generator=generator).to(HALF),
        "beta": torch.rand(tokens, heads, generator=generator).to(HALF),
        "g": -torch.rand(tokens, heads, generator=generator),
    }


def by_loops(given, states, lengths, scale, gk=None, after=None):
    """One token of one head at a time, float64. `states`: what each sequence begins with; `after(token, head, state)` is told."""
    query, key, value, beta, g = (given[name].double().numpy() for name in ("query", "key", "value", "beta", "g"))
    groups, out, token = value.shape[1] // query.shape[1], np.zeros(value.shape), 0
    for b, length in enumerate(lengths):
        for head in range(value.shape[1]):
            state = states[b][head]
            for t in range(token, token + length):
                k, q = key[t, head // groups], query[t, head // groups]
                state = state * np.exp(g[t, head])
                if gk is not None:
                    state = state * np.exp(gk[t, head])
                state = state + np.outer(beta[t, head] * (value[t, head] - state @ k), k)
                out[t, head] = state @ q * scale
                if after is not None:
                    after(t, head, state)
            states[b][head] = state
        token += length
    return out


def close(found, expected, tolerance=1.6e-2):
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 2),
    st.integers(1, 2),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_few_tokens_of_each_sequence(lengths, key_heads, groups, by_channel, seed):
    tokens, heads = sum(lengths), key_heads * groups
    made, generator = inputs(tokens, key_heads, groups, seed), np.random.default_rng(seed)
    state = torch.randn(tokens + 2, heads, 3, 4, generator=torch.Generator().manual_seed(seed)).to(HALF)
    slots = generator.permutation(tokens + 2)[:tokens]
    accepted = [int(generator.integers(1, length + 1)) for length in lengths]
    gk = torch.tensor(-generator.random((tokens, heads, 4)), dtype=torch.float32) if by_channel else None
    starts = np.cumsum([0, *lengths[:-1]])
    begin = [state[slots[start + count - 1]].double().numpy().copy() for start, count in zip(starts, accepted)]
    changed = state.double().numpy().copy()

    def after(token, head, value):
        changed[slots[token], head] = value

    expected = by_loops(made, begin, lengths, 0.5, None if gk is None else gk.numpy(), after)
    arguments = {
        **made,
        "scale": 0.5,
        "gk": gk,
        "actual_seq_lengths": torch.tensor(lengths, dtype=torch.int32),
        "ssm_state_indices": torch.tensor(slots, dtype=torch.int32),
        "num_accepted_tokens": torch.tensor(accepted, dtype=torch.int32),
    }
    before = state.clone()
    out, new_state = recurrent_gated_delta_rule_functional(state=state, **arguments)
    assert torch.equal(state, before) and out.dtype == new_state.dtype == HALF
    close(out, expected)
    close(new_state, changed)
    assert torch.equal(recurrent_gated_delta_rule(state=state, **arguments), out) and torch.equal(state, new_state)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=3),
    st.integers(1, 2),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.booleans(),
    st.integers(0, 99),
)
def test_prompts_of_several_chunks(lengths, groups, dtype, with_decay, seed):
    made = inputs(sum(lengths), 1, groups, seed)
    state = torch.randn(len(lengths), groups, 3, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    decays = made["g"] if with_decay else torch.zeros_like(made["g"])
    states = [x.double().numpy().copy() for x in state]
    expected = by_loops({**made, "g": decays}, states, lengths, 0.7)
    out, final = chunk_gated_delta_rule(
        **{**made, "g": decays if with_decay else None},
        initial_state=state,
        actual_seq_lengths=torch.tensor(lengths, dtype=torch.int32),
        scale=0.7,
    )
    assert out.dtype == HALF and final.dtype == dtype and out.is_contiguous()
    close(out, expected)
    close(final, np.stack(states), 1e-4 if dtype == torch.float32 else 1.6e-2)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 5),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.integers(0, 99),
)
def test_parts_of_attention_made_one(parts, rows, dtype, seed):
    generator = np.random.default_rng(seed)
    lse = generator.standard_normal((parts, rows)).astype(np.float32)
    lse[generator.random((parts, rows)) < 0.3] = np.inf
    outs = torch.tensor(generator.standard_normal((parts, rows, 3))).to(dtype)
    out, total = attention_update(list(torch.tensor(lse)), list(outs), 1)
    for m in range(rows):
        kept = [i for i in range(parts) if np.isfinite(lse[i, m])]
        if not kept:
            assert total[m] == torch.inf and not out[m].any()
            continue
        expected = np.log(sum(np.exp(float(lse[i, m])) for i in kept))
        assert total[m].item() == pytest.approx(expected, abs=1e-5)
        weighted = sum(np.exp(float(lse[i, m]) - expected) * outs[i, m].double().numpy() for i in kept)
        close(out[m], weighted)


@pytest.mark.parametrize("layout", ["SBH", "TND"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_step_of_the_ring(layout, dtype):
    generator = torch.Generator().manual_seed(0)
    scores, values = torch.randn(2, 3, 2, 9, generator=generator), torch.randn(2, 2, 9, 4, generator=generator)

    def part(keys):  # of B, S, N = 2, 3, 2
        maximum = scores[..., keys].amax(-1)
        weights = (scores[..., keys] - maximum.unsqueeze(-1)).exp()
        out = ((weights / weights.sum(-1, keepdim=True)).transpose(1, 2) @ values[:, :, keys]).transpose(1, 2)
        sums = [x.unsqueeze(-1).expand(*x.shape, 8) for x in (maximum, weights.sum(-1))]
        if layout == "SBH":
            return [out.transpose(0, 1).flatten(2).to(dtype), *(x.transpose(1, 2) for x in sums)]
        return [out.flatten(0, 1).to(dtype), *(x.flatten(0, 1) for x in sums)]

    more = {"input_layout": layout, "input_softmax_layout": "TND", "actual_seq_qlen": torch.tensor([3, 6])}
    found = ring_attention_update(*part(slice(0, 4)), *part(slice(4, 9)), **(more if layout == "TND" else {}))
    for x, y in zip(found, part(slice(0, 9))):
        torch.testing.assert_close(x, y.contiguous(), rtol=2e-3, atol=2e-3)


def test_what_is_excluded_is_named():
    made = inputs(3, 1, 1, 0)
    state, lengths = torch.zeros(3, 1, 3, 4, dtype=HALF), torch.tensor([3], dtype=torch.int32)
    rule = {**made, "state": state, "scale": 1.0, "actual_seq_lengths": lengths, "ssm_state_indices": torch.arange(3)}
    for changed, match in (
        ({"scale": None}, "scale must be given"),
        ({"actual_seq_lengths": None}, "actual_seq_lengths must be given"),
        ({"actual_seq_lengths": lengths + 1}, "actual_seq_lengths must be the running sum"),
        ({"ssm_state_indices": torch.tensor([0, 1, 3])}, "ssm_state_indices must be from 0 to 2"),
        ({"num_accepted_tokens": torch.tensor([4])}, "num_accepted_tokens must be from 1"),
        ({"value": made["value"].float()}, "value must be of dtype torch.bfloat16"),
    ):
        with pytest.raises(ValueError, match=match):
            recurrent_gated_delta_rule(**{**rule, **changed})
    with pytest.raises(ValueError, match="beta and initial_state must be given"):
        chunk_gated_delta_rule(made["query"], made["key"], made["value"], actual_seq_lengths=lengths)
    with pytest.raises(ValueError, match="update_type must be one of 0, 1"):
        attention_update([torch.zeros(1)], [torch.zeros(1, 8)], 2)
