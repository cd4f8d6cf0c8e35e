"""Any arguments: a ValueError that names one, or the reference's result; the fake implementation accepts and refuses the same.

MOE_GRAPH_FUZZ is the number of examples (a slice by default; 100000 in a nightly run).
"""

import os

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moe_graph
from cases import ALL_DTYPES, make, make_counts
from reference import assert_matches

EXAMPLES = int(os.environ.get("MOE_GRAPH_FUZZ", "400"))
ARGUMENTS = (
    "tokens",
    "expert_token_num_per_rank",
    "per_token_scales",
    "expert_token_num_type",
    "idx_type",
    "tokens_dtype",
)

sizes = st.integers(0, 5)
dtypes = st.sampled_from(ALL_DTYPES)
seldom = st.sampled_from(
    [False] * 7 + [True]
)  # one slip in a call is the rule, so that its own check is what refuses it


@st.composite
def any_calls(draw):
    """(tokens, counts, keyword arguments): a valid call, in which each part may be replaced by anything of its type."""
    length, hidden, seed = draw(sizes), draw(st.integers(1, 4)), draw(st.integers(0, 2**20))
    ranks, experts = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shapes = st.lists(sizes, max_size=4).map(tuple)
    tokens_dtype = draw(st.sampled_from([None] * 6 + [290, 296, 297]))
    dtype = torch.uint8 if tokens_dtype is not None and not draw(seldom) else draw(dtypes)
    tokens = make(draw(shapes) if draw(seldom) else (length, hidden), dtype, seed)
    counts_dtype = draw(dtypes if draw(seldom) else st.sampled_from([torch.int32, torch.int64]))
    if draw(seldom):
        counts = make(draw(shapes), counts_dtype, seed)
    elif draw(seldom):
        counts = torch.randint(-2, 4, (ranks, experts), generator=torch.Generator().manual_seed(seed))
        counts = counts.to(torch.int32)
    else:
        counts = make_counts(ranks, experts, length, torch.int64, seed)
        counts = (
            counts.to(counts_dtype)
            if counts_dtype != getattr(torch, "float4_e2m1fn_x2", None)
            else counts.to(torch.int8).view(counts_dtype)
        )
    scales = None
    if draw(st.booleans()):
        documented = st.sampled_from([(length,), (length, 3), (length, 2, 2)])
        scales = make(draw(shapes if draw(seldom) else documented), draw(dtypes), seed + 1)
    number = st.sampled_from([0, 1])
    wrong = st.integers(-3, 300)
    arguments = {
        "per_token_scales": scales,
        "expert_token_num_type": draw(wrong if draw(seldom) else number),
        "idx_type": draw(wrong if draw(seldom) else number),
        "tokens_dtype": draw(wrong) if draw(seldom) else tokens_dtype,
    }
    return tokens, counts, arguments


def outcome(tokens, counts, arguments):
    """The outputs, or the ValueError's text."""
    try:
        return moe_graph.moe_re_routing(tokens, counts, **arguments), None
    except ValueError as error:
        return None, str(error)


def on_meta(x):
    return torch.empty_like(x, device="meta") if isinstance(x, torch.Tensor) else x


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(call=any_calls())
def test_accepted_and_right_or_refused_by_name(call):
    tokens, counts, arguments = call
    outputs, refusal = outcome(tokens, counts, arguments)
    fakes, fake_refusal = outcome(on_meta(tokens), on_meta(counts), {k: on_meta(v) for k, v in arguments.items()})
    if refusal is not None:
        allowed = refusal.removeprefix("npu_moe_re_routing: ")
        assert allowed != refusal and allowed.startswith(tuple(f"{name} must be" for name in ARGUMENTS)), refusal
        if fake_refusal is None:  # the fake implementation sees no values
            assert "sum to A" in refusal or "counts >= 0" in refusal, refusal
        else:
            assert fake_refusal == refusal or "device of tokens" in fake_refusal
        return
    assert fake_refusal is None, fake_refusal
    assert [(x.shape, x.dtype) for x in fakes] == [(x.shape, x.dtype) for x in outputs]
    modes = (arguments["expert_token_num_type"], arguments["idx_type"])
    assert_matches(outputs, tokens, counts, arguments["per_token_scales"], *modes)
