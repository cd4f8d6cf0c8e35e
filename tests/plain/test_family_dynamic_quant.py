"""npu_dynamic_quant on CPU tensors, against loops from the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import moe_graph  # noqa: F401  registers the operator
from family.grouped_matmul import groupings, random
from family.quantization import assert_quantized
from versions import opcheck

operator = torch.ops.npu.npu_dynamic_quant
HALVES = st.sampled_from([torch.float16, torch.bfloat16])


@settings(max_examples=60, deadline=None)
@given(groupings(exact=True), HALVES, st.sampled_from(["plain", "smooth", "groups"]), st.integers(0, 99))
def test_per_token(grouping, dtype, smoothing, seed):
    listed, kind, total = grouping
    sizes = (
        listed.diff(prepend=torch.zeros(1, dtype=torch.int64)) if kind == 0 else listed[:, 1] if kind == 2 else listed
    )
    x, width = random((total, 5), dtype, seed), 5
    keywords, factors = {}, [[1.0] * width] * total
    if smoothing == "smooth":
        keywords["smooth_scales"] = random((width,), dtype, seed + 1)
        factors = [keywords["smooth_scales"].tolist()] * total
    elif smoothing == "groups":
        keywords["smooth_scales"] = random((len(sizes), width), dtype, seed + 1)
        keywords["group_index"] = sizes.cumsum(0).int()
        factors = [row for row, size in zip(keywords["smooth_scales"].tolist(), sizes.tolist()) for _ in range(size)]
    y, scale = operator(x, **keywords)
    assert (y.shape, y.dtype, scale.shape, scale.dtype) == (x.shape, torch.int8, (total,), torch.float32)
    values = [[a * b for a, b in zip(row, factor)] for row, factor in zip(x.tolist(), factors)]
    assert_quantized(y.tolist(), scale.tolist(), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("smooth", [False, True])
def test_other_modes(dtype, smooth):
    x = random((2, 3, 4), dtype, 0)
    y, scale = operator(x, quant_mode="pertensor", smooth_scales=random((4,), dtype, 1) if smooth else None)
    values = (x.float() * random((4,), dtype, 1).float() if smooth else x.float()).reshape(1, -1)
    assert scale.shape == (1,)
    assert_quantized(y.reshape(1, -1).tolist(), scale.tolist(), values.tolist())

    y, scale = operator(x, quant_mode="perchannel", smooth_scales=random((3,), dtype, 1) if smooth else None)
    values = (x.float() * random((3, 1), dtype, 1).float() if smooth else x.float()).transpose(1, 2).reshape(8, 3)
    assert scale.shape == (2, 4)
    assert_quantized(y.transpose(1, 2).reshape(8, 3).tolist(), scale.flatten().tolist(), values.tolist())


@pytest.mark.parametrize("mode", ["pertoken", "pertensor", "perchannel"])
def test_int4_is_packed(mode):
    x = random((2, 3, 16), torch.float16, 3)
    y, scale = operator(x, dst_type=torch.quint4x2, quant_mode=mode)
    assert y.dtype == torch.int32 and y.shape == (2, 3, 2)
    found = torch.stack([(y >> 4 * i) & 15 for i in range(8)], -1).flatten(-2)
    found = torch.where(found > 7, found - 16, found)
    for b in range(2):
        for i in range(3):
            for j in range(0, 16, 5):
                of = {"pertoken": x[b, i], "pertensor": x, "perchannel": x[b, :, j]}[mode]
                step = float(scale[{"pertoken": (b, i), "pertensor": 0, "perchannel": (b, j)}[mode]])
                assert step == pytest.approx(float(of.float().abs().max()) / 7, rel=1e-6)
                assert int(found[b, i, j]) == pytest.approx(float(x[b, i, j]) / step, abs=0.5 + 1e-4)


def test_halves_round_to_even_and_rows_of_zeros_stay_zeros():
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5], [0, 0, 0, 0]]).half()
    y, scale = operator(x)
    assert y.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]
    assert scale.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("mode", ["pertoken", "pertensor", "perchannel"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 4), (3, 0)])
def test_fake_agrees(mode, shape):
    x = random(shape, torch.float16, 0)
    outputs = operator(x, quant_mode=mode)
    with FakeTensorMode() as fake_mode:
        fakes = operator(fake_mode.from_tensor(x), quant_mode=mode)
    assert [(f.shape, f.dtype) for f in fakes] == [(o.shape, o.dtype) for o in outputs]


@pytest.mark.parametrize("mode", ["pertoken", "pertensor", "perchannel"])
@pytest.mark.parametrize("dst_type", [torch.quint4x2, 23, 24, 290, 291, 292])
def test_fake_agrees_for_other_types(monkeypatch, mode, dst_type):
    monkeypatch.setenv("MOE_GRAPH_PRODUCT", "950")
    x = random((2, 3, 8), torch.float16, 0)
    with FakeTensorMode() as fake_mode:
        fakes = operator(fake_mode.from_tensor(x), dst_type=dst_type, quant_mode=mode)
    outputs = operator(x, dst_type=dst_type, quant_mode=mode)
    assert [(f.shape, f.dtype) for f in fakes] == [(o.shape, o.dtype) for o in outputs]


def test_opcheck():
    keywords = {"smooth_scales": random((2, 4), torch.float16, 1), "group_index": torch.tensor([1, 3]).int()}
    opcheck(operator.default, (random((3, 4), torch.float16, 0),), keywords)


X = random((3, 4), torch.float16, 0)
SMOOTH = {"smooth_scales": random((2, 4), torch.float16, 0)}


@pytest.mark.parametrize(
    ("x", "keywords", "message"),
    [
        (X.float(), {}, "input must be of dtype torch.float16 or torch.bfloat16, got torch.float32"),
        (X[0], {}, r"input must be of shape \[..., H\] of 2 to 8 dimensions"),
        (X[..., :5], {"dst_type": torch.quint4x2}, "input must be of a last size that 8 divides, for int4"),
        (X, {"dst_type": 290}, r"dst_type of torch_npu.hifloat8 \(290\): only Ascend 950 has it, the product is A2"),
        (X, {"quant_mode": "pergroup"}, "quant_mode must be one of 'pertoken', 'pertensor', 'perchannel'"),
        (X, {"dst_type_max": 15.0}, "dst_type_max must be 0.0"),
        (X, {"smooth_scales": X[0, :3]}, "smooth_scales must be of last size 4"),
        (X, {"smooth_scales": X[0].float()}, "smooth_scales must be of dtype torch.float16, got torch.float32"),
        (X, {"smooth_scales": X}, r"smooth_scales must be of shape \[H\]"),
        (X, {"group_index": torch.tensor([3]).int()}, "group_index must be None without smooth_scales"),
        (X, {**SMOOTH, "group_index": torch.tensor([1, 3])}, "group_index must be of dtype torch.int32"),
        (X, {**SMOOTH, "group_index": torch.tensor([3]).int()}, "smooth_scales must be of first size 1"),
        (X, {**SMOOTH, "group_index": torch.tensor([1, 2]).int()}, "group_index must be .* end with the 3 tokens"),
        (X, {**SMOOTH, "group_index": torch.tensor([4, 3]).int()}, "group_index must be non-decreasing"),
    ],
)
def test_errors(x, keywords, message):
    with pytest.raises(ValueError, match=message):
        operator(x, **keywords)
