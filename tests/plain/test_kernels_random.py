"""Kernels that draw random numbers: what their definitions promise of the numbers, and that the state decides them."""

from __future__ import annotations

import pytest
import torch

from moe_graph.engine import dtypes, kernels, registry

assert kernels  # importing them registers them

FLOAT, HALF, INT32, BF16 = 0, 1, 3, 27  # GE's numbers


def run(ge_type, *inputs, dtype=None, **attributes):
    if dtype is not None:
        attributes["dtype"] = dtypes.from_ge(dtype)
    return registry.get(ge_type).function(*inputs, **attributes)


def number(value, dtype=torch.int64):
    return torch.tensor(value, dtype=dtype)


def state(seed, offset):
    unsigned = getattr(torch, "uint64", torch.int64)  # it came with torch 2.3
    return number([seed], unsigned), number([0, offset], unsigned), number(1, torch.int32)


def draw(ge_type, seed, offset, size=20000, dtype=FLOAT):
    """`size` numbers of the operator, as float64."""
    shape = number([size])
    if ge_type.startswith("StatelessRandom"):
        return run(ge_type, shape, *state(seed, offset), dtype=dtype).double()
    if ge_type == "StatelessRandperm":
        return run(ge_type, number(size), number(seed), number(offset), dtype=INT32).double()
    if ge_type == "StatelessBernoulli":
        return run(ge_type, shape, torch.tensor(0.3), number(seed), number(offset), dtype=dtype).double()
    if ge_type == "MultinomialWithReplacement":
        weights = torch.tensor([1.0, 0.0, 3.0])
        return run(ge_type, weights, number(seed), number(offset), numsamples=size, replacement=True).double()
    assert ge_type == "StatelessDropOutGenMask"
    return run(ge_type, shape, torch.tensor(0.3), number(seed), number(0), number([0, offset])).double()


DRAWING = [
    "StatelessRandomUniformV2",
    "StatelessRandomNormalV2",
    "StatelessBernoulli",
    "StatelessRandperm",
    "MultinomialWithReplacement",
    "StatelessDropOutGenMask",
]


@pytest.mark.parametrize("ge_type", DRAWING)
def test_the_state_decides_the_numbers(ge_type):
    first = draw(ge_type, 5, 12)
    assert torch.equal(first, draw(ge_type, 5, 12))
    for seed, offset in ((5, 16), (6, 12), (5 + 2**32, 12), (12, 5)):
        assert not torch.equal(first, draw(ge_type, seed, offset)), (seed, offset)


def test_neighbouring_offsets_are_unrelated():
    streams = torch.stack([draw("StatelessRandomUniformV2", 0, 4 * i, 4000) for i in range(8)])
    assert (torch.corrcoef(streams) - torch.eye(8)).abs().max() < 0.08


@pytest.mark.parametrize("ge_type", ["StatelessBernoulli", "MultinomialWithReplacement", "StatelessRandperm"])
def test_seed_minus_one_is_a_new_stream_each_time(ge_type):
    assert not torch.equal(draw(ge_type, -1, 0), draw(ge_type, -1, 0))
    assert torch.equal(draw(ge_type, -1, 4), draw(ge_type, -1, 4))


@pytest.mark.parametrize("dtype", [FLOAT, HALF, BF16])
def test_distributions(dtype):
    uniform = draw("StatelessRandomUniformV2", 1, 0, dtype=dtype)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01 and abs(uniform.var() - 1 / 12) < 0.005
    normal = draw("StatelessRandomNormalV2", 1, 0, dtype=dtype)
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03 and normal.abs().max() > 3
    bits = draw("StatelessBernoulli", 1, 0, dtype=dtype)
    assert set(bits.tolist()) == {0.0, 1.0} and abs(bits.mean() - 0.3) < 0.015


def test_types_and_shapes():
    got = run("StatelessRandomUniformV2", number([2, 0, 3]), *state(1, 0), dtype=BF16)
    assert got.dtype == torch.bfloat16 and got.shape == (2, 0, 3)
    assert run("StatelessRandperm", number(5), number(1), number(0), dtype=INT32).dtype == torch.int32
    assert sorted(draw("StatelessRandperm", 3, 0, 100).tolist()) == list(range(100))


def test_bernoulli_takes_a_probability_for_each():
    chances = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    got = run("StatelessBernoulli", number([2, 2]), chances, number(1), number(0), dtype=FLOAT)
    assert torch.equal(got, chances)
    with pytest.raises(RuntimeError):
        run("StatelessBernoulli", number([2]), torch.tensor(1.5), number(1), number(0), dtype=FLOAT)


def test_multinomial():
    weights = torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 2.0]], dtype=torch.float16)
    got = run("MultinomialWithReplacement", weights, number(1), number(0), numsamples=2)
    assert got.dtype == torch.int64 and got.sort().values.tolist() == [[0, 2], [1, 2]]
    counts = draw("MultinomialWithReplacement", 1, 0).long().bincount(minlength=3)
    assert counts[1] == 0 and abs(counts[2] / counts.sum() - 0.75) < 0.02


@pytest.mark.parametrize("shape", [[3, 5], [128], [130, 7], []])
def test_dropout_mask_and_its_use(shape):
    x = torch.randn(shape, dtype=torch.float64) + 10
    keep = torch.tensor(0.75)
    mask = run("StatelessDropOutGenMask", number(shape), keep, number(3), number(0), number([0, 8]))
    assert mask.dtype == torch.uint8 and mask.shape == (-(-x.numel() // 128) * 16,)
    bits = [mask[i // 8].item() >> (i % 8) & 1 for i in range(len(mask) * 8)]
    assert not any(bits[x.numel() :])
    expected = x * torch.tensor(bits[: x.numel()]).view(x.shape) / 0.75
    torch.testing.assert_close(run("DropOutDoMask", x, mask, keep), expected)


def test_dropout_of_all_and_of_none():
    x = torch.ones(200, dtype=torch.float16)
    for keep in (0.0, 1.0):
        keep = torch.tensor(keep, dtype=torch.float16)
        mask = run("StatelessDropOutGenMask", number([200]), keep, number(3), number(0), None)
        assert torch.equal(run("DropOutDoMask", x, mask, keep), x * keep)
    with pytest.raises(ValueError, match="a bit for each of 200 elements, got 128"):
        run("DropOutDoMask", x, mask[:16], keep)
