"""Products by the CPU's own instructions: as exact as those through float32, which is what an independent float64 says."""

from __future__ import annotations

import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy
import pytest
import torch

import moe_graph
from moe_graph.foundation import cpu
from moe_graph.operators import rounding
from moe_graph.operators.matmul import products
from moe_graph.re_routing import index

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def within_one_rounding(y, x, w):
    """Is y the product in float64, rounded once, but for what float32 sums are off?"""
    exact = x.double() @ w.double()
    sums = (x.double().abs() @ w.double().abs()) * x.shape[-1] * 2.0**-24
    return bool(((y.double() - exact).abs() <= exact.abs() * torch.finfo(y.dtype).eps + sums + 1e-7).all())


@pytest.mark.parametrize("dtype", FLOATS)
@hypothesis.given(sizes=st.tuples(*[st.integers(1, 70)] * 3), seed=st.integers(0, 99), transposed=st.booleans())
@hypothesis.settings(max_examples=20, deadline=None)
def test_a_product_is_rounded_once(dtype, sizes, seed, transposed):
    rows, depth, columns = sizes
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, depth, generator=generator).to(dtype)
    w = torch.randn(columns, depth, generator=generator).to(dtype).t()
    w = w if transposed else w.contiguous()
    y = torch.empty(rows, columns, dtype=dtype)
    products.multiply(x, w, y)
    assert within_one_rounding(y, x, w)


@pytest.mark.parametrize("dtype", FLOATS)
@hypothesis.given(
    ends=st.lists(st.integers(0, 40), min_size=1, max_size=6).map(sorted), depth=st.sampled_from([8, 12, 48])
)
@hypothesis.settings(max_examples=20, deadline=None)
def test_groups_at_once_are_their_products(dtype, ends, depth):
    x, w = torch.randn(48, depth).to(dtype), torch.randn(len(ends), depth, 24).to(dtype)
    (y,) = torch.ops.npu.npu_grouped_matmul([x], [w], group_list=torch.tensor(ends), group_type=0, split_item=3)
    assert y.dtype == dtype and not y[ends[-1] :].any()
    for start, end, matrix in zip([0, *ends], ends, w):
        assert within_one_rounding(y[start:end], x[start:end], matrix)


@hypothesis.given(sizes=st.tuples(*[st.integers(1, 40)] * 3), extreme=st.booleans())
@hypothesis.settings(max_examples=30, deadline=None)
def test_sums_of_int8_are_exact(sizes, extreme):
    rows, depth, columns = sizes
    low = 127 if extreme else -128
    x = torch.randint(low, 128, (rows, depth), dtype=torch.int8)
    w = torch.randint(low, 128, (depth, columns), dtype=torch.int8)
    if extreme:
        w = -w - 1
    expected = x.numpy().astype(numpy.int64) @ w.numpy().astype(numpy.int64)
    assert (products.exact_product(x, w).numpy() == expected).all()


@pytest.mark.parametrize("product", ["exact", "bfloat16"])
@pytest.mark.parametrize("rows", ["expanded", "transposed", "every second", "overlapping"])
def test_rows_may_lie_anyhow_in_memory(product, rows):
    whole = torch.randint(-8, 8, (32, 32), dtype=torch.int8).to(torch.int8 if product == "exact" else torch.bfloat16)
    laid_out = {
        "expanded": whole[:1].expand(16, 16 * 2)[:, :16],
        "transposed": whole.t()[:16, :16],
        "every second": whole[::2, ::2],
        "overlapping": whole.as_strided((16, 16), (1, 1)),
    }[rows]
    other = whole[:16, 16:]
    for x, w in ((laid_out, other), (other, laid_out), (laid_out, laid_out)):
        expected = x.double().numpy() @ w.double().numpy()
        if product == "exact":
            found = products.exact_product(x, w)
        else:
            products.multiply(x, w, found := torch.empty(16, 16, dtype=torch.bfloat16))
            expected = torch.from_numpy(expected).bfloat16().double().numpy()
        assert (found.double().numpy() == expected).all()


@pytest.mark.slow  # another process: oneDNN reads the variable when it starts
def test_a_cpu_without_such_instructions_goes_through_float32():
    code = (
        "import moe_graph, torch; from moe_graph.foundation import cpu; from moe_graph.operators.matmul import products\n"
        "assert not cpu.multiplies(torch.bfloat16) and not cpu.multiplies(torch.float16)\n"
        "x = torch.full((64, 64), 127, dtype=torch.int8); assert (products.exact_product(x, x) == 64 * 127 * 127).all()\n"
        "x, y = torch.full((8, 512), 1 / 256).bfloat16(), torch.empty(8, 8).bfloat16()\n"
        "products.multiply(x, x.t(), y); assert (y == 2**-7).all()"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_float32_is_always_its_own():
    assert cpu.multiplies(torch.float32) and not cpu.multiplies(torch.float64)


@hypothesis.given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_the_index_on_the_host_is_the_index(shape, dtype, seed):
    counts = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    total = int(counts.sum())
    for given in (counts, counts.t()):
        assert torch.equal(index.gather_index_on_host(given, total), index.gather_index(given, total))


@pytest.mark.parametrize(
    "counts, total",
    [
        ([[-1, 3]], 2),
        ([[1, 2]], 2),
        ([[2**31 - 1, 2**31 - 1, 4]], 2),  # wraps around to 2 in int32
        ([[2**62] * 4 + [2]], 2),  # and in int64
        ([[-(2**63), -(2**63), 2]], 2),
    ],
)
def test_wrong_counts_have_no_index_on_the_host(counts, total):
    small = max(map(abs, counts[0])) < 2**31
    counts = torch.tensor(counts, dtype=torch.int32 if small else torch.int64)
    assert index.gather_index_on_host(counts, total) is None
    with pytest.raises(ValueError, match="expert_token_num_per_rank must be counts"):
        moe_graph.moe_un_routing(torch.zeros(total, 4), counts)


def test_the_way_back_is_the_operator_where_somebody_looks_on():
    tokens, counts = torch.randn(3, 4), torch.tensor([[1, 0], [1, 1]], dtype=torch.int32)

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.name())
            return function(*args, **(kwargs or {}))

    names = []
    with Seen():
        seen = moe_graph.moe_un_routing(tokens, counts).tokens
    assert "npu::npu_moe_re_routing" in names
    assert torch.equal(seen, moe_graph.moe_un_routing(tokens, counts).tokens)
    mapped = torch.vmap(lambda x: moe_graph.moe_un_routing(x, counts).tokens)(torch.stack([tokens, tokens + 1]))
    assert torch.equal(mapped, torch.stack([seen, seen + 1]))


@pytest.mark.parametrize("dtype", FLOATS[1:])
@hypothesis.given(sizes=st.tuples(*[st.integers(1, 70)] * 3), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=20, deadline=None)
def test_products_of_matrices_are_rounded_once_and_do_not_depend_on_the_layout(dtype, sizes, seed):
    rows, depth, columns = sizes
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(*size, generator=generator).to(dtype) for size in ((rows, depth), (depth, columns)))
    laid_out_otherwise = w.t().contiguous().t()
    for operator in (torch.ops.aten.mm.default, torch.ops.aten.matmul.default):
        y = rounding.listed(operator)(x, w)
        assert within_one_rounding(y, x, w)
        assert torch.equal(y, rounding.listed(operator)(x, laid_out_otherwise))
    (y,) = rounding.listed(torch.ops.aten.bmm.default)(x[None], laid_out_otherwise[None])
    assert within_one_rounding(y, x, w)
