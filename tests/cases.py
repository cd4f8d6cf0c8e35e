"""Random calls of the operator, for hypothesis and for seeds."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def existing(*names: str) -> list[torch.dtype]:
    """The dtypes of these names that this torch has: float8_e8m0fnu came with 2.7, float4_e2m1fn_x2 with 2.8, uint16 with 2.3."""
    return [getattr(torch, name) for name in names if hasattr(torch, name)]


INTEGERS = existing("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
OTHERS = existing("bool", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2")
ALL_DTYPES = FLOATS + INTEGERS + OTHERS


def make(shape, dtype, seed=0):
    """A tensor of random bytes viewed as `dtype` (NaNs and all); bools are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    width = torch.empty((), dtype=dtype).element_size()
    data = torch.randint(0, 256, (*shape, width), dtype=torch.uint8, generator=generator)
    return data.view(dtype).view(shape)


def make_counts(ranks, experts, tokens, dtype=torch.int32, seed=0, skew=1.0):
    """Random counts [ranks, experts] that sum to `tokens`; the larger the skew, the more chunks are empty."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(ranks * experts, generator=generator).pow(skew * 4) + 1e-6
    chunk = (
        torch.multinomial(weights, tokens, replacement=True, generator=generator)
        if tokens
        else torch.empty(0, dtype=torch.int64)
    )
    return torch.bincount(chunk, minlength=ranks * experts).view(ranks, experts).to(dtype)


def make_scales(tokens, kind, seed=0):
    """Scales of one of the three documented shapes, or None."""
    if kind is None:
        return None
    shape, dtype = {
        "A": ((tokens,), torch.float32),
        "A,S": ((tokens, 3), torch.float32),
        "A,K/64,2": ((tokens, 2, 2), getattr(torch, "float8_e8m0fnu", torch.uint8)),
        "A,K/64,2 bytes": ((tokens, 2, 2), torch.uint8),
    }[kind]
    return make(shape, dtype, seed + 1)


SCALES = [None, "A", "A,S", "A,K/64,2", "A,K/64,2 bytes"]


@st.composite
def calls(draw, dtypes=tuple(ALL_DTYPES), max_tokens=64):
    """(tokens, counts, keyword arguments) of a valid call."""
    ranks = draw(st.sampled_from([1, 2, 3, 8]))
    experts = draw(st.sampled_from([1, 2, 5, 16, 256]))
    count = draw(st.sampled_from([0, 1, 2]) | st.integers(0, max_tokens))
    seed = draw(st.integers(0, 2**20))
    hidden = draw(st.integers(1, 9))
    tokens = make((count, hidden), draw(st.sampled_from(dtypes)), seed)
    counts = make_counts(ranks, experts, count, draw(st.sampled_from([torch.int32, torch.int64])), seed)
    arguments = {
        "per_token_scales": make_scales(count, draw(st.sampled_from(SCALES)), seed),
        "expert_token_num_type": draw(st.sampled_from([0, 1])),
        "idx_type": draw(st.sampled_from([0, 1])),
    }
    return tokens, counts, arguments
