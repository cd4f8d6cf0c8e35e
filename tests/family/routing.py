"""The routing operators by plain loops over tokens and experts, in float64, from the operators' documents; and calls of them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st


def choose_experts(rows, k, experts, seed, skew=False, invalid=False):
    """expert_idx [rows, k] int32. skew: most tokens choose expert 0; invalid: some choose none, -1."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, experts, (rows, k), generator=generator)
    if skew:
        chosen[torch.rand((rows, k), generator=generator) < 0.8] = 0
    if invalid:
        chosen[torch.rand((rows, k), generator=generator) < 0.2] = -1
    return chosen.int()


@st.composite
def routings(draw):
    """expert_idx [N, K] and expert_num: no tokens, no choice, skewed choices and choices of no expert among them."""
    rows, k, experts = draw(st.integers(0, 6)), draw(st.integers(0, 4)), draw(st.integers(1, 6))
    return choose_experts(
        rows, k, experts, draw(st.integers(0, 999)), draw(st.booleans()), draw(st.booleans())
    ), experts


def init_routing(x, expert_idx, options, scale=None, offset=None):
    """Lists: rows (token, values, scale or None; None where a row is padding), index, and the count output."""
    start, end = options.get("active_expert_range") or (0, options["expert_num"])
    k = expert_idx.shape[1]
    chosen = [
        (expert, slot)
        for expert in range(start, end)
        for slot, other in enumerate(expert_idx.flatten().tolist())
        if other == expert
    ]
    counts = [sum(1 for expert, _ in chosen if expert == number) for number in range(start, end)]
    index = [-1] * expert_idx.numel()
    if options.get("drop_pad_mode"):
        capacity = options["expert_capacity"]
        rows = [None] * (options["expert_num"] * capacity)
        used = [0] * options["expert_num"]
        for expert, slot in chosen:
            if used[expert] < capacity:
                rows[expert * capacity + used[expert]] = (expert, slot)
                index[slot] = expert * capacity + used[expert]
            used[expert] += 1
    else:
        total = expert_idx.numel()
        active = options.get("active_num", -1)
        rows = (chosen + [None] * (total - len(chosen)))[: total if active <= 0 else min(active, total)]
        if options.get("row_idx_type"):
            flat = expert_idx.flatten().tolist()
            above = sorted((expert, slot) for slot, expert in enumerate(flat) if expert >= end)
            index = [slot for _, slot in chosen + above] + [slot for slot, expert in enumerate(flat) if expert < start]
        else:
            for place, (_, slot) in enumerate(chosen):
                index[slot] = place
    mode = options.get("quant_mode", -1)
    moved = [None if row is None else _row(x, row, k, start, mode, scale, offset) for row in rows]
    kind = options.get("expert_tokens_num_type", 0)
    if kind == 0:
        counted = [sum(counts[: i + 1]) for i in range(len(counts))]
    elif kind == 1:
        counted = counts
    else:
        counted = [[start + i, count] for i, count in enumerate(counts) if count]
        counted += [[0, 0]] * (options["expert_num"] - len(counted))
    return moved, index, counted


def _row(x, row, k, start, mode, scale, offset):
    """The values and the scale of a row of expanded_x."""
    expert, slot = row
    values = x[slot // k].double().numpy()
    if mode == -1:
        return values, None if scale is None else float(scale[slot // k])
    if mode == 0:
        return np.clip(np.rint(values * float(scale[0]) + float(offset[0])), -128, 127), None
    if scale is not None:
        values = values * scale[0 if len(scale) == 1 else expert - start].double().numpy()
    largest = max((abs(value) for value in values), default=0.0)
    return values, largest / 127
