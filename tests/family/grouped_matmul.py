"""`npu_grouped_matmul` by plain loops over groups, rows and columns, in float64, from the operator's document; and calls of it."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st

ACTIVATIONS = {
    0: lambda v: v,
    1: lambda v: max(v, 0.0),
    2: lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    4: lambda v: v / (1 + math.exp(-1.702 * abs(v))) * math.exp(0.851 * (v - abs(v))),
    5: lambda v: v / (1 + math.exp(-v)),
}


def numbers(tensor):
    return None if tensor is None else tensor.double().numpy()


def product(x, weight, bias=None, scale=None, token_scale=None, act_type=0, antiquant=None):
    """One group: x [m, K], weight [K, N] -> float64 [m, N]."""
    rows, inner, columns = len(x), weight.shape[0], weight.shape[1]
    y = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            total = 0.0
            for k in range(inner):
                value = weight[k, j]
                if antiquant is not None:
                    value = (value + (0.0 if antiquant[1] is None else antiquant[1][j])) * antiquant[0][j]
                total += x[i, k] * value
            if scale is not None:
                integer_bias = bias is not None and bias[1]
                total += bias[0][j] if integer_bias else 0.0
                total *= scale[j] * (1.0 if token_scale is None else token_scale[i])
                total += bias[0][j] if bias is not None and not integer_bias else 0.0
            elif bias is not None:
                total += bias[0][j]
            y[i, j] = ACTIVATIONS[act_type](total)
    return y


def pairs(group_list, kind):
    """(group, size) in the order of the rows."""
    values = group_list.tolist()
    if kind == 2:
        return [tuple(pair) for pair in values]
    if kind == 1:
        return list(enumerate(values))
    return [(i, end - start) for i, (start, end) in enumerate(zip([0, *values], values))]


def by_rows(x, weights, group_list, kind, **lists):
    """x [M, K] and a weight for each group -> float64 [M, N]; `lists` has for each argument of `product` a list, or rows of x."""
    y, start = np.zeros((len(x), weights[0].shape[1])), 0
    tokens = lists.pop("token_scale", None)
    act_type = lists.pop("act_type", 0)
    for group, size in pairs(group_list, kind):
        rows = slice(start, start + size)
        own = {name: None if values is None else values[group] for name, values in lists.items()}
        y[rows] = product(
            x[rows], weights[group], token_scale=None if tokens is None else tokens[rows], act_type=act_type, **own
        )
        start += size
    return y


def by_columns(x, weight, group_list, kind):
    """x [M, K], weight [K, N] -> float64 [G, M, N]."""
    y, start = np.zeros((len(group_list), len(x), weight.shape[1])), 0
    for group, size in pairs(group_list, kind):
        columns = slice(start, start + size)
        y[group] = product(x[:, columns], weight[columns])
        start += size
    return y


@st.composite
def groupings(draw, max_groups=6, max_size=7, exact=False):
    """(group_list, group_list_type, total): total may exceed the groups' sum unless `exact`."""
    sizes = draw(
        st.lists(st.sampled_from([0, 0, 1, 2, max_size]) | st.integers(0, max_size), min_size=1, max_size=max_groups)
    )
    kind = draw(st.sampled_from([0, 1, 2]))
    total = sum(sizes) + (0 if exact else draw(st.sampled_from([0, 0, 3])))
    counts = torch.tensor(sizes)
    if kind == 0:
        return counts.cumsum(0), kind, total
    if kind == 1:
        return counts, kind, total
    order = torch.tensor(draw(st.permutations(range(len(sizes)))))
    return torch.stack((order, counts[order]), 1), kind, total


def random(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, generator=generator).to(dtype)
    if dtype == torch.int32:
        return torch.randint(-1000, 1000, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator).to(dtype)
