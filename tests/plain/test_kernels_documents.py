"""Where the kernels' documents and sources say something else than PyTorch's operator of that name: the value they say."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from moe_graph.engine import dtypes, kernels, registry

assert kernels  # importing them registers them
NAN, INFINITE = float("nan"), float("inf")


def run(ge_type, *inputs, **attributes):
    return registry.get(ge_type).function(*inputs, **attributes)


def same(got, expected):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), equal_nan=True)


def gelu(x):
    return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_gelu_is_by_the_tangent():
    x = torch.tensor([-3.0, -1.0, -0.1, 0.0, 0.5, 2.0])
    same(run("Gelu", x), [gelu(v) for v in x.tolist()])
    step = 1e-4
    slopes = [(gelu(v + step) - gelu(v - step)) / (2 * step) for v in x.tolist()]
    same(run("GeluGrad", torch.full((6,), 2.0), x, x), [2 * slope for slope in slopes])
    assert not torch.allclose(run("Gelu", x), run("GeluV2", x), atol=1e-5)  # GeluV2 is by the error function


def test_clip_where_the_limits_cross():
    x, low, high = torch.tensor([0.0, 5.0]), torch.tensor(3.0), torch.tensor(1.0)
    assert run("ClipByValue", x, low, high).tolist() == [3, 3]
    assert run("ClipByValueV2", x, low, high).tolist() == [1, 1]


def test_remainders():
    x1, x2 = torch.tensor([7, -7, 7, -7]), torch.tensor([3, 3, -3, -3])
    assert run("FloorMod", x1, x2).tolist() == [1, 2, -2, -1]
    for ge_type in ("Mod", "TruncateMod"):
        assert run(ge_type, x1, x2).tolist() == [1, -1, 1, -1]
    assert run("FloorMod", x1, torch.tensor([0, 3, 0, -3])).tolist() == [7, 2, 7, -1]


def test_thresholds_let_through_what_is_no_number():
    x = torch.tensor([NAN, -1.0, 1.0, 2.0])
    one = torch.ones(4)
    same(run("ThresholdV2", x, torch.tensor([1.0]), torch.tensor([9.0])), [NAN, 9, 9, 2])
    assert run("ThresholdGradV2D", one, x, threshold=1.0).tolist() == [1, 0, 0, 1]
    assert run("HardtanhGrad", x, one).tolist() == [1, 0, 0, 0]
    assert run("HardtanhGrad", x, one, min_val=-2.0, max_val=3.0).tolist() == [1, 1, 1, 1]


def test_division_of_truth_values_is_float():
    same(run("RealDiv", torch.tensor([True, False]), torch.tensor([True, True])), [1.0, 0.0])


def test_empty_axes_of_truth_reductions_mean_all():
    x = torch.tensor([[True, False], [True, True]])
    none = torch.tensor([], dtype=torch.int64)
    assert run("ReduceAll", x, none).tolist() is False and run("ReduceAny", x, none).tolist() is True
    assert run("ReduceAny", x, none, keep_dims=True).tolist() == [[True]]


def test_log_sum_exp_of_empty_axes():
    x, none = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([], dtype=torch.int64)
    same(run("ReduceLogSumExp", x, none), math.log(sum(math.exp(v) for v in range(4))))
    assert torch.equal(run("ReduceLogSumExp", x, none, noop_with_empty_axes=True), x)


def test_deviation_about_a_mean_that_is_not_unbiased():
    x = torch.tensor([[1.0, 3.0, 5.0]])
    mean = torch.full((1, 3), 3.0)
    same(run("ReduceStdWithMean", x, mean, dim=[1]), [2.0])
    same(run("ReduceStdWithMean", x, mean, dim=[1], unbiased=False), [math.sqrt(8 / 3)])


def test_squeeze_refuses_other_sizes_than_1():
    x = torch.zeros(1, 2, 1)
    assert run("Squeeze", x, axis=[0, -1]).shape == (2,) and run("Squeeze", x).shape == (2,)
    with pytest.raises(ValueError, match="axis 1 must be a dimension of size 1"):
        run("Squeeze", x, axis=[1])


def test_range_of_unlike_types_is_float32():
    start, limit, step = torch.tensor(0), torch.tensor(2), torch.tensor(0.5)
    got = run("Range", start, limit, step)
    assert got.dtype == torch.float32 and got.tolist() == [0, 0.5, 1, 1.5]
    assert run("Range", start, limit, torch.tensor(1)).dtype == torch.int64


def test_gradient_of_constant_padding():
    grad = torch.arange(12.0).view(3, 4)
    assert run("PadV3Grad", grad, torch.tensor([1, 0, 1, 2]), mode="constant").tolist() == [[5], [9]]


def test_dropout_that_keeps_nothing():
    mask = torch.full((16,), 255, dtype=torch.uint8)
    assert run("DropOutDoMask", torch.ones(8), mask, torch.tensor([0.0])).tolist() == [0] * 8
    assert run("DropOutDoMask", torch.ones(8), mask, torch.tensor([0.5])).tolist() == [2] * 8


def test_one_hot_takes_first_elements():
    x = torch.tensor([1])
    got = run("OneHot", x, torch.tensor([3]), torch.tensor([5, 6]), torch.tensor([[0], [1]]))
    assert got.tolist() == [[0, 5, 0]]


def test_cast_of_infinity_to_int16():
    x = torch.tensor([INFINITE, -INFINITE, 60000.0, -1.5]).half()
    node = SimpleNamespace(inputs=[SimpleNamespace(type=dtypes.from_ge(1))])
    assert run("Cast", x, dst_type=dtypes.from_ge(6), node=node).tolist() == [32767, -32768, 32767, -1]


@pytest.mark.parametrize("ge_type", ["HardSigmoid"])
def test_whole_numbers_stay_whole(ge_type):
    x = torch.tensor([-9, 0, 9], dtype=torch.int32)
    got = run(ge_type, x)
    assert got.dtype == torch.int32 and got.tolist() == [0, 0, 1]  # 0.5 is cut off


@pytest.mark.parametrize("axes", [[1], [0, 2], [-1, 0]])
def test_softmax_along_several_dimensions(axes):
    x = torch.randn(2, 3, 4)
    exp = x.double().exp()
    expected = exp / exp.sum(axes, keepdim=True)
    same(run("SoftmaxV2", x, axes=axes), expected.tolist())
    same(run("LogSoftmaxV2", x, axes=axes), expected.log().tolist())
    grad = torch.randn(2, 3, 4)
    backward = expected * (grad - (grad * expected).sum(axes, keepdim=True))
    torch.testing.assert_close(run("SoftmaxGrad", expected.float(), grad, axes=axes), backward.float())
    backward = grad - expected * grad.sum(axes, keepdim=True)
    torch.testing.assert_close(run("LogSoftmaxGrad", grad, expected.log().float(), axis=axes), backward.float())


def test_nll_loss_of_images():
    x, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    y, total = run("NLLLoss", x, target, reduction="none")
    assert y.shape == (2, 4, 5) and total.item() == 40
    assert torch.equal(y, -x.gather(1, target[:, None])[:, 0])
    got = run("NLLLossGrad", x, torch.ones(2, 4, 5), target, torch.ones(3), total, reduction="none")
    assert torch.equal(got, -torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float())


@pytest.mark.parametrize("axis, indices", [(1, (2, 5)), (2, (2, 3, 2)), (3, (2, 4)), (-1, (2,))])
def test_gather_in_batches(axis, indices):
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    places = torch.randint(0, 3, indices)
    got = run("GatherV2", x, places, torch.tensor(axis), batch_dims=1)
    for n in range(2):
        alone = run("GatherV2", x[n], places[n], torch.tensor(axis - 1 if axis > 0 else axis))
        assert torch.equal(got[n], alone)
    assert torch.equal(
        run("GatherV2", x, places - 3, torch.tensor(1), batch_dims=1, negative_index_support=True)[1],
        run("GatherV2", x[1], places[1], torch.tensor(0)),
    )
    with pytest.raises(ValueError, match="the first 1 dimensions of x and indices must be the same"):
        run("GatherV2", x, places[:1], torch.tensor(axis), batch_dims=1)


def test_places_of_the_type_that_is_asked_for():
    x, int64 = torch.tensor([3.0, 1.0, 2.0]), 9  # DT_INT64 of GE's enum
    assert (
        run("Sort", x, y2_dtype=int64)[1].dtype
        == run("ArgMaxWithValue", x, dimension=0, indice_dtype=int64)[0].dtype
        == torch.int64
    )
    assert run("ArgMinWithValue", x, dimension=0, indice_dtype=int64)[0].tolist() == 1
    same(run("Round", torch.tensor([1.25, 2.346]), decimals=2), [1.25, 2.35])
