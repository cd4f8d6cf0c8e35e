"""Rotary embeddings against loops written from the operators' documents."""

import numpy as np
import pytest
import torch
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhere import check


def partner(row: np.ndarray, mode: str) -> np.ndarray:
    """The rotated elements, one by one."""
    out, size = np.zeros_like(row), len(row)
    for i in range(size):
        if mode == "half":
            out[i] = -row[i + size // 2] if i < size // 2 else row[i - size // 2]
        elif mode == "interleave":
            out[i] = -row[i + 1] if i % 2 == 0 else row[i - 1]
        else:  # quarter
            quarter = size // 4
            out[i] = -row[i + quarter] if (i // quarter) % 2 == 0 else row[i - quarter]
    return out


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mode: str) -> torch.Tensor:
    shape = x.shape
    cos, sin = (np.asarray(t.float().expand(shape)).reshape(-1, shape[-1]) for t in (cos, sin))
    rows = np.asarray(x.float()).reshape(-1, shape[-1])
    out = np.zeros_like(rows)
    for i, row in enumerate(rows):
        if mode == "interleave-half":
            row = np.concatenate([row[::2], row[1::2]])
        out[i] = row * cos[i] + partner(row, "half" if mode == "interleave-half" else mode) * sin[i]
    return torch.from_numpy(out.reshape(shape)).to(x.dtype)


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


ONE_ROUNDING = dict(rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rotary_mul(dtype):
    x, cos, sin = (
        random(2, 3, 5, 64, dtype=dtype),
        random(1, 1, 5, 64, dtype=dtype),
        random(1, 1, 5, 64, dtype=dtype, seed=1),
    )
    tolerance = ONE_ROUNDING if dtype != torch.float32 else dict(rtol=1e-6, atol=1e-6)
    check(torch_npu.npu_rotary_mul, [x, cos, sin], [turned(x, cos, sin, "half")], **tolerance)


@pytest.mark.parametrize("mode", ["half", "interleave", "quarter", "interleave-half"])
def test_rotary_mul_modes(mode, product):
    x, cos, sin = random(2, 5, 3, 16), random(1, 5, 1, 16), random(1, 5, 1, 16, seed=1)
    if mode in ("quarter", "interleave-half"):
        with pytest.raises(RuntimeError, match=f"rotary_mode must be half or interleave on A2, got '{mode}'"):
            torch_npu.npu_rotary_mul(x.npu(), cos.npu(), sin.npu(), mode)
        product("950")
    check(torch_npu.npu_rotary_mul, [x, cos, sin, mode], [turned(x, cos, sin, mode)], modes=("eager",), **ONE_ROUNDING)


@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_rotary_mul_by_a_matrix(mode):
    x, cos, sin = random(2, 5, 3, 8), random(1, 5, 1, 8), random(1, 5, 1, 8, seed=1)
    rotate = torch.from_numpy(np.stack([partner(row, mode) for row in np.eye(8)])).bfloat16()
    found = [turned(x, cos, sin, mode)]
    check(torch_npu.npu_rotary_mul, [x, cos, sin, mode, rotate], found, modes=("eager", "static"), **ONE_ROUNDING)


@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_gradients_of_rotary_mul(mode):
    x, cos, sin = (random(2, 5, 3, 8, dtype=torch.float64, seed=seed) for seed in range(3))
    grad = random(2, 5, 3, 8, dtype=torch.float32)

    def composed(x, cos, sin):
        if mode == "half":
            first, second = x.chunk(2, -1)
            return x * cos + torch.cat([-second, first], -1) * sin
        return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin

    leaves = [t.clone().requires_grad_() for t in (x, cos, sin)]
    expected = torch.autograd.grad(composed(*leaves), leaves, grad.double())
    npu = [t.float().npu().requires_grad_() for t in (x, cos, sin)]
    found = torch.autograd.grad(torch_npu.npu_rotary_mul(*npu, mode), npu, grad.npu())
    for got, wanted in zip(found, expected):
        torch.testing.assert_close(got.cpu().double(), wanted, rtol=1e-5, atol=1e-5)


LAYOUTS = {
    "BSND": ((2, 3, 4, 64), (2, 3, 1, 64), (2, 3, 1, 64)),
    "TND": ((6, 4, 64), (6, 1, 64), (6, 1, 64)),
    "SBND": ((3, 2, 4, 64), (3, 2, 1, 64), (3, 2, 1, 64)),
    "BNSD": ((2, 4, 3, 64), (2, 2, 3, 64), (2, 1, 3, 64)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["half", "interleave", "quarter"])
def test_apply_rotary_pos_emb_changes_its_arguments(layout, mode):
    query_shape, key_shape, angle = LAYOUTS[layout]
    query, key = random(*query_shape), random(*key_shape, seed=1)
    cos, sin = random(*angle, seed=2), random(*angle, seed=3)
    turned_ones = [turned(query, cos, sin, mode), turned(key, cos, sin, mode)]
    npu = [t.npu() for t in (query, key, cos, sin)]
    found = torch_npu.npu_apply_rotary_pos_emb(*npu, layout, mode)
    assert [t.data_ptr() for t in found] == [t.data_ptr() for t in npu[:2]]
    for got, wanted in zip(found, turned_ones):
        torch.testing.assert_close(got.cpu(), wanted, **ONE_ROUNDING)


@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_apply_rotary_pos_emb_in_a_graph(layout):
    query_shape, key_shape, angle = LAYOUTS[layout]
    args = [random(*query_shape), random(*key_shape, seed=1), random(*angle, seed=2), random(*angle, seed=3), layout]
    expected = [turned(args[0], args[2], args[3], "half"), turned(args[1], args[2], args[3], "half")]
    check(torch_npu.npu_apply_rotary_pos_emb, args, expected, **ONE_ROUNDING)


def test_apply_rotary_pos_emb_refuses_what_the_document_excludes():
    q = random(2, 3, 4, 8).npu()
    with pytest.raises(ValueError, match="layout must be one of"):
        torch_npu.npu_apply_rotary_pos_emb(q, q, q, q, "NBSD")
    with pytest.raises(ValueError, match="cos and sin must have one shape"):
        torch_npu.npu_apply_rotary_pos_emb(q, q, q[0], q[0])


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 3), heads=st.integers(1, 4), length=st.integers(1, 5), one=st.booleans())
def test_interleave_rope(batch, heads, length, one):
    x = random(batch, heads, length, 64)
    cos, sin = (random(batch, 1, 1 if one else length, 64, seed=seed) for seed in (1, 2))
    wanted = turned(x, cos, sin, "interleave-half")
    torch.testing.assert_close(
        torch_npu.npu_interleave_rope(x.npu(), cos.npu(), sin.npu()).cpu(), wanted, **ONE_ROUNDING
    )


def test_interleave_rope_in_a_graph():
    x, cos, sin = random(2, 3, 5, 64), random(2, 1, 5, 64), random(2, 1, 5, 64, seed=1)
    check(torch_npu.npu_interleave_rope, [x, cos, sin], [turned(x, cos, sin, "interleave-half")], **ONE_ROUNDING)
