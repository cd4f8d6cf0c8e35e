"""npu_dequant_swiglu_quant on CPU tensors, against loops from the formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import moe_graph  # noqa: F401  registers the operator
from family.grouped_matmul import random
from family.quantization import assert_quantized
from versions import opcheck

operator = torch.ops.npu.npu_dequant_swiglu_quant
FLOAT32 = torch.float32


def activated(row, left, mode, limit, alpha, bias):
    """The swiglu of one row, a list of numbers."""
    half = len(row) // 2
    result = []
    for j in range(half):
        if mode == 1:
            a, b = min(row[2 * j], limit), max(-limit, min(row[2 * j + 1], limit))
            result.append(a / (1 + math.exp(-alpha * a)) * (b + bias))
        else:
            a, b = (row[j], row[half + j]) if left else (row[half + j], row[j])
            result.append(a / (1 + math.exp(-a)) * b)
    return result


def rows_of(tensor, groups):
    """A list for each group; one value stands for all columns."""
    if tensor is None:
        return None
    tensor = tensor.double()
    if tensor.dim() == 1:
        tensor = tensor.unsqueeze(0) if groups == 1 and len(tensor) > 1 else tensor.unsqueeze(1)
    return tensor.tolist()


def values_before_quantization(x, k):
    """Rows of numbers, None for a row of no group; without quant_scale."""
    sizes = [len(x)] if k.get("group_index") is None else k["group_index"].tolist()
    weight, bias = rows_of(k.get("weight_scale"), len(sizes)), k.get("bias")
    tokens = k["activation_scale"].flatten().tolist() if k.get("activation_scale") is not None else [1.0] * len(x)
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    result, of_group = [], []
    for i, row in enumerate(x.double().tolist()):
        if i >= len(groups):
            result.append(None)
            of_group.append(None)
            continue
        if weight is not None:
            whole = bias.flatten().tolist() if bias is not None and bias.dtype == torch.int32 else [0] * len(row)
            rest = (
                bias.double().flatten().tolist() if bias is not None and bias.dtype != torch.int32 else [0] * len(row)
            )
            factors = weight[groups[i]]
            row = [(v + w) * f * tokens[i] + r for v, w, f, r in zip(row, whole, factors, rest)]
        own = k.get("activate_left", False), k.get("swiglu_mode", 0)
        result.append(
            activated(row, *own, k.get("clamp_limit", 7.0), k.get("glu_alpha", 1.702), k.get("glu_bias", 1.0))
        )
        of_group.append(groups[i])
    return result, of_group


def factored(rows, of_group, scales, half):
    if scales is None:
        return rows
    wide = [scale * half if len(scale) == 1 else scale for scale in scales]
    return [None if g is None else [v * s for v, s in zip(row, wide[g])] for row, g in zip(rows, of_group)]


def assert_fake_agrees(x, keywords, outputs):
    with FakeTensorMode() as mode:
        moved = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
        fakes = operator(mode.from_tensor(x), **moved)
    assert [(f.shape, f.dtype) for f in fakes] == [(o.shape, o.dtype) for o in outputs]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 3, 6]), min_size=1, max_size=4) | st.none(),
    st.sampled_from([torch.int32, torch.bfloat16, torch.float16]),
    st.sampled_from([None, torch.int32, FLOAT32, torch.float16]),
    st.sampled_from([None, "rows", "one"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1]),
    st.integers(0, 99),
)
def test_dynamic(sizes, dtype, bias_dtype, smooth, with_tokens, left, mode, seed):
    count, half = (4 if sizes is None else sum(sizes) + seed % 3), 3
    groups = 1 if sizes is None else len(sizes)
    keywords = {"quant_mode": 1, "activate_left": left or mode == 1, "swiglu_mode": mode}
    if sizes is not None:
        keywords["group_index"], bias_dtype = torch.tensor(sizes), None
    x = random((count, 2 * half), dtype, seed)
    if dtype == torch.int32:
        keywords["weight_scale"] = random((groups, 2 * half), FLOAT32, seed + 1) / 200
        if with_tokens:
            keywords["activation_scale"] = random((count,), FLOAT32, seed + 2)
        if bias_dtype is not None:
            keywords["bias"] = random((2 * half,), bias_dtype, seed + 3)
    if smooth == "rows":
        keywords["quant_scale"] = random((groups, half), torch.float16, seed + 4)
    elif smooth == "one":
        keywords["quant_scale"] = random((groups,), FLOAT32, seed + 4)
    y, scale = operator(x, **keywords)
    assert_fake_agrees(x, keywords, (y, scale))
    assert (y.shape, y.dtype, scale.shape, scale.dtype) == ((count, half), torch.int8, (count,), FLOAT32)
    rows, of_group = values_before_quantization(x, keywords)
    scales = rows_of(keywords.get("quant_scale"), groups)
    values = [[0.0] * half if row is None else row for row in factored(rows, of_group, scales, half)]
    assert_quantized(y.tolist(), scale.tolist(), values, accuracy=2e-5)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 3)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.bfloat16])
def test_static(shape, dtype):
    x = random((5, 6), dtype, 0)
    keywords = {"quant_scale": random(shape, FLOAT32, 1).abs() + 0.1, "quant_offset": random(shape, FLOAT32, 2) * 5}
    if dtype == torch.int32:
        keywords["weight_scale"] = random((6,), FLOAT32, 3) / 300
    y, scale = operator(x, **keywords)
    assert_fake_agrees(x, keywords, (y, scale))
    rows, _ = values_before_quantization(x, keywords)
    factors, offsets = (keywords[name].double().expand(1, 3)[0].tolist() for name in ("quant_scale", "quant_offset"))
    for row, quantized in zip(rows, y.tolist()):
        for value, factor, offset, number in zip(row, factors, offsets, quantized):
            wanted = max(-128.0, min(127.0, value / factor + offset))
            assert abs(number - wanted) <= 0.5 + 1e-4
    assert scale.tolist() == [0.0] * 5


def test_more_dimensions():
    x, scale = random((2, 3, 4), torch.int32, 0), random((2, 3), FLOAT32, 1)
    keywords = {"weight_scale": random((4,), FLOAT32, 2), "quant_mode": 1}
    y, scales = operator(x, activation_scale=scale, **keywords)
    flat_y, flat_scales = operator(x.view(6, 4), activation_scale=scale.view(6, 1), **keywords)
    assert torch.equal(y, flat_y.view(2, 3, 2)) and torch.equal(scales, flat_scales.view(2, 3))


def test_one_group_takes_rows_of_one_dimension():
    x, weight, smooth = random((3, 4), torch.int32, 0), random((4,), FLOAT32, 1), random((2,), FLOAT32, 2)
    keywords = {"quant_mode": 1, "group_index": torch.tensor([3])}
    flat = operator(x, weight_scale=weight, quant_scale=smooth, **keywords)
    rows = operator(x, weight_scale=weight.view(1, 4), quant_scale=smooth.view(1, 2), **keywords)
    assert all(map(torch.equal, flat, rows))


def test_one_scale_for_all_rows_in_each_shape():
    x, weight = random((3, 4), torch.int32, 0), random((4,), FLOAT32, 1)
    flat, row, column = (operator(x, weight_scale=weight.view(shape), quant_mode=1) for shape in [(4,), (1, 4), (4, 1)])
    assert all(map(torch.equal, flat, row)) and all(map(torch.equal, flat, column))


def test_opcheck():
    keywords = {"weight_scale": random((2, 4), FLOAT32, 1), "group_index": torch.tensor([1, 2]), "quant_mode": 1}
    opcheck(operator.default, (random((3, 4), torch.int32, 0),), keywords)


X, HALF = random((3, 4), torch.int32, 0), random((3, 4), torch.bfloat16, 0)
W, Q, GROUPS = random((2, 4), FLOAT32, 0), random((2, 2), FLOAT32, 0), torch.tensor([1, 2])
OK = {"weight_scale": W, "quant_mode": 1, "group_index": GROUPS}


@pytest.mark.parametrize(
    ("x", "keywords", "message"),
    [
        (X.float(), {}, "x must be of dtype torch.int32 or .*, got torch.float32"),
        (X[:, :3], OK, r"x must be of even last size, got shape \(3, 3\)"),
        (X, {"quant_mode": 1}, "weight_scale must be given for int32 x, got None"),
        (HALF, {"weight_scale": W[0], "quant_mode": 1}, r"weight_scale must be None \(x is not int32\)"),
        (HALF, {"activation_scale": W[0, :3], "quant_mode": 1}, "activation_scale must be None"),
        (X, {**OK, "weight_scale": W[0]}, r"weight_scale must be of shape \[G, 2H\] with G = 2 groups, 2H = 4"),
        (X, {**OK, "weight_scale": W.half()}, "weight_scale must be of dtype torch.float32, got torch.float16"),
        (X, {**OK, "quant_scale": Q[:1]}, r"quant_scale must be of shape \[G, H\] or \[G\]"),
        (X, {**OK, "activation_scale": W[0]}, r"activation_scale must be of shape \(3,\)"),
        (
            X,
            {**OK, "quant_mode": 0, "quant_scale": Q, "quant_offset": Q},
            "quant_mode must be 1 with group_index, got 0",
        ),
        (X, {**OK, "quant_mode": 2}, "quant_mode must be one of 0, 1, got 2"),
        (X, {**OK, "bias": W[0]}, r"bias must be None \(with group_index\)"),
        (X, {**OK, "quant_offset": Q}, r"quant_offset must be None \(with quant_mode 1\)"),
        (X, {"weight_scale": W[0], "quant_scale": Q[0]}, "quant_offset must be given with quant_mode 0, got None"),
        (X, {**OK, "dst_type": 291}, "dst_type must be torch.int8 .*, got torch_npu.float8_e5m2"),
        (X, {**OK, "round_mode": 2}, "round_mode must be 0, rint"),
        (X, {**OK, "activate_dim": 0}, "activate_dim must be -1 or 1, the last"),
        (X, {**OK, "swiglu_mode": 2}, "swiglu_mode must be one of 0, 1, got 2"),
        (X, {**OK, "swiglu_mode": 1}, "activate_left must be True with swiglu_mode 1, got False"),
        (
            X,
            {**OK, "swiglu_mode": 1, "activate_left": True, "clamp_limit": 0.0},
            "clamp_limit must be finite and above 0",
        ),
        (X, {**OK, "group_index": GROUPS.int()}, "group_index must be of dtype torch.int64, got torch.int32"),
        (
            X,
            {**OK, "group_index": GROUPS + 1},
            r"group_index must be non-negative, in all up to x's 3 tokens, got \[2, 3\]",
        ),
    ],
)
def test_errors(x, keywords, message):
    with pytest.raises(ValueError, match=message):
        operator(x, **keywords)
