"""Kernels that assign to a reference, and those that write into caches, against loops over their definitions."""

from __future__ import annotations

import pytest
import torch

from moe_graph.engine import kernels, registry

assert kernels  # importing them registers them


def run(ge_type, *inputs, **attributes):
    return registry.get(ge_type).function(*inputs, **attributes)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def test_references_are_assigned():
    ref = torch.zeros(2, 3)
    assert run("Assign", ref, torch.ones(2, 3)) is ref and ref.sum() == 6
    with pytest.raises(ValueError, match=r"shape of ref, \[2, 3\], got \[3\]"):
        run("Assign", ref, torch.ones(3))
    run("ScatterNdUpdate", ref, ints(1).view(1, 1), torch.full((1, 3), 5.0))
    assert ref.tolist() == [[1, 1, 1], [5, 5, 5]]
    run("Scatter", ref, ints(2, 0), torch.full((2, 1), 7.0), reduce="update", axis=-1)
    assert ref.tolist() == [[1, 1, 7], [7, 5, 5]]


@pytest.mark.parametrize("axis", [-2, 1, 3])
def test_scatter_writes_windows(axis):
    var, indices = torch.randn(3, 4, 5, 4), ints(2, 0, 1)
    shape = list(var.shape)
    shape[axis] = 2
    updates = torch.randn(shape)
    expected = var.clone()
    for i, start in enumerate(indices.tolist()):
        expected[i].narrow(axis if axis < 0 else axis - 1, start, 2).copy_(updates[i])
    assert torch.equal(run("Scatter", var.clone(), indices, updates, reduce="update", axis=axis), expected)
    somewhere = torch.stack((ints(2, 1, 0), indices), 1)
    assert torch.equal(run("Scatter", var.flip(0), somewhere, updates, reduce="update", axis=axis), expected.flip(0))


def test_scatter_refuses_what_it_cannot_write():
    var, updates = torch.zeros(2, 4, 3), torch.ones(2, 2, 3)
    for indices in (ints(0, 3), ints(-1, 0)):
        with pytest.raises(ValueError, match="room for 2 in dimension 1 of size 4"):
            run("Scatter", var, indices, updates, reduce="update", axis=-2)
    with pytest.raises(ValueError, match="axis must not be the first"):
        run("Scatter", var, ints(0, 0), updates, reduce="update")
    with pytest.raises(NotImplementedError, match="reduce must be update or none, got 'add'"):
        run("Scatter", var, ints(0, 0), updates, reduce="add", axis=-2)
    assert not var.any()


def test_quantised_scatter():
    updates = torch.tensor([[[0.25, 1.0, -400.0, 6.0]]], dtype=torch.float16)
    scales, zero_points = torch.tensor([0.5, 2.0, 1.0, 0.01]), ints(0, 1, 0, 0)
    got = run(
        "QuantUpdateScatter",
        torch.ones(1, 3, 4, dtype=torch.int8),
        ints(2),
        updates,
        scales,
        zero_points,
        reduce="update",
    )
    assert got.tolist() == [[[1] * 4, [1] * 4, [0, 2, -128, 127]]]  # halves go to even
    got = run("QuantUpdateScatter", got, ints(0), updates, scales, reduce="update", reciprocal_scale=True)
    assert got[0, 0].tolist() == [0, 2, -128, 0]
    with pytest.raises(NotImplementedError, match="must be int8"):
        run("QuantUpdateScatter", torch.zeros(1, 3, 4), ints(0), updates, scales, reduce="update")


def test_scatter_list():
    var = [torch.zeros(2, 4, 3) for _ in range(3)]
    updates = torch.arange(1.0, 4).view(3, 1, 1, 1).expand(3, 2, 1, 3)
    got = run("ScatterList", var, ints(3, 0, 1), updates, torch.tensor([1, 0, 1], dtype=torch.uint8))
    assert [t.sum(-1)[0].tolist() for t in got] == [[0, 0, 0, 3], [0, 0, 0, 0], [0, 9, 0, 0]]
    assert not any(t.any() for t in var)
    with pytest.raises(ValueError, match="must have 3 entries, got 2 and 3"):
        run("ScatterList", var, ints(3, 0), updates)


@pytest.mark.parametrize("cache_mode", ["Norm", "PA_NZ"])
def test_paged_cache(cache_mode):
    heads, size, page, n = 2, 6, 4, 3
    key, value = torch.randn(5, heads, size), torch.randn(5, heads, size)
    slots = ints(9, 0, 3, 4, 7)
    shape = (3, page, heads, size) if cache_mode == "Norm" else (3, heads * size // n, page, n)
    caches = torch.zeros(shape), torch.ones(shape)
    before = [cache.clone() for cache in caches]
    got = run("ScatterPaKvCache", key, caches[0], slots, value, caches[1], cache_mode=cache_mode)
    for cache, tokens, result in zip(before, (key, value), got):
        expected = cache.clone()
        for token, slot in zip(tokens, slots.tolist()):
            if cache_mode == "Norm":
                expected[slot // page, slot % page] = token
            else:
                expected[slot // page, :, slot % page] = token.reshape(-1, n)
        assert torch.equal(result, expected) and not torch.equal(cache, expected)
    written = [cache.clone() for cache in caches]
    run("ScatterPaKvCache", key, caches[0], torch.full_like(slots, -1), value, caches[1], cache_mode=cache_mode)
    assert all(torch.equal(cache, same) for cache, same in zip(caches, written))  # negative slots are skipped
    with pytest.raises(ValueError, match="cache_mode must be Norm or PA_NZ, got 'other'"):
        run("ScatterPaKvCache", key, caches[0], slots, value, caches[1], cache_mode="other")


def test_scalars_are_joined():
    assert run("ConcatV2", [torch.tensor(3), torch.tensor([4, 5])], torch.tensor(0)).tolist() == [3, 4, 5]


def test_permute_keeps_what_its_order_does_not_name():
    x = torch.randn(2, 3, 4)
    assert torch.equal(run("Permute", x, order=[1, 0]), x.transpose(0, 1))
    assert torch.equal(run("Permute", x, order=[2, 0, 1]), x.movedim(2, 0))
    assert torch.equal(run("Permute", x), x)


def test_split_and_slice_refuse_what_does_not_fit():
    x = torch.arange(10.0).view(2, 5)
    with pytest.raises(ValueError, match="dimension 1 must be a multiple of num_split, 2"):
        run("Split", torch.tensor(1), x, num_split=2)
    assert [t.tolist() for t in run("Split", torch.tensor(0), x, num_split=2)] == [[x[0].tolist()], [x[1].tolist()]]
    assert torch.equal(run("Slice", x, ints(1, 1), ints(1, -1)), x[1:2, 1:])
    with pytest.raises(RuntimeError):
        run("Slice", x, ints(0, 3), ints(2, 3))


def test_a_closed_range_holds_its_limit():
    number = torch.tensor
    assert run("Range", number(0), number(6), number(2), is_closed=True).tolist() == [0, 2, 4, 6]
    assert run("Range", number(5), number(0), number(-2)).tolist() == [5, 3, 1]
    tenths = run("Range", number(0.0), number(1.0), number(0.1, dtype=torch.float64), is_closed=True)
    assert len(tenths) == 11


def test_bags_of_embeddings():
    weight, indices = torch.randn(6, 4), torch.tensor([[1, 3], [5, 5], [0, 2]])
    result, bag, size, _ = run("EmbeddingBag", weight, indices, mode="sum")
    torch.testing.assert_close(result, weight[indices].sum(1))
    assert run("EmbeddingBag", weight, indices.view(-1), torch.tensor([0, 1, 1]), mode="max")[0][1].tolist() == [0] * 4
    with pytest.raises(ValueError, match="mode must be one of sum, mean, max, got 'prod'"):
        run("EmbeddingBag", weight, indices, mode="prod")
