"""Kernels of the host engine against NumPy, against autograd for gradients, and that none changes its inputs.

What torchair's declared cases reach is checked by the conformance walk; here stands what they do not reach.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_graph import operators
from moe_graph.engine import dtypes, kernels, registry

assert kernels  # importing them registers them


def run(ge_type, *inputs, **attributes):
    """The kernel of a GE type on these inputs, which it must leave as they are. Attributes named dtype are GE types."""
    flat = [x for item in inputs for x in (item if isinstance(item, list) else [item]) if isinstance(x, torch.Tensor)]
    before = [x.clone() for x in flat]
    attributes = {k: dtypes.from_ge(v) if k in ("dtype", "indices_dtype", "Tout") else v for k, v in attributes.items()}
    result = registry.get(ge_type).function(*inputs, **attributes)
    assert all(torch.equal(x, y) for x, y in zip(flat, before)), f"{ge_type} changed an input"
    return result


def ints(*values):
    return torch.tensor(values, dtype=torch.int64)


def same(got, expected, **tolerance):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), **tolerance)


X = torch.arange(24.0).view(2, 3, 4) - 7


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-6, 6), st.integers(-6, 6), st.sampled_from([-2, -1, 1, 2, 3])), min_size=1, max_size=3
    ),
    st.integers(0, 7),
    st.integers(0, 7),
)
def test_strided_slice_is_numpys(slices, begin_mask, end_mask):
    begin, end, step = map(list, zip(*slices))
    index = tuple(
        slice(None if begin_mask >> i & 1 else b, None if end_mask >> i & 1 else e, s)
        for i, (b, e, s) in enumerate(slices)
    )
    got = run(
        "StridedSliceV2", X, ints(*begin), ints(*end), None, ints(*step), begin_mask=begin_mask, end_mask=end_mask
    )
    same(got, X.numpy()[index].copy())


def test_strided_slice_shrinks_and_takes_axes():
    same(run("StridedSliceV2", X, ints(-1), ints(9), ints(2), None, shrink_axis_mask=1), X[:, :, -1])
    same(run("StridedSliceV2", X, ints(1, 1), ints(3, 2), ints(-1, 0), ints(1, 1)), X[1:2, :, 1:3])
    with pytest.raises(NotImplementedError, match="new_axis_mask"):
        run("StridedSliceV2", X, ints(0), ints(1), None, None, new_axis_mask=1)


@pytest.mark.parametrize(
    "mode, numpys", [("reflect", "reflect"), ("edge", "edge"), ("symmetric", "symmetric"), ("circular", "wrap")]
)
@settings(deadline=None)
@given(pads=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=3))
def test_padding_is_numpys(mode, numpys, pads):
    pads = [(min(b, n - 1), min(a, n - 1)) for (b, a), n in zip(pads, X.shape)]
    same(run("PadV3", X, ints(*np.ravel(pads)), mode=mode), np.pad(X.numpy(), pads, mode=numpys))
    apart = [b for b, _ in pads] + [a for _, a in pads]
    same(run("PadV3", X, ints(*apart), mode=mode, paddings_contiguous=False), np.pad(X.numpy(), pads, mode=numpys))


def test_constant_padding():
    same(
        run("PadV3", X, ints(0, 1, 2, 0, 0, 0), torch.tensor(5.0)),
        np.pad(X.numpy(), [(0, 1), (2, 0), (0, 0)], constant_values=5),
    )
    same(run("PadV3", X, ints(0, 0, 0, 0, -1, -2)), X[:, :, 1:2])
    with pytest.raises(NotImplementedError, match="mode must be constant or one of .* got 'cubic'"):
        run("PadV3", X, ints(0, 0, 0, 0, 0, 0), mode="cubic")


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_padding_gradient_is_autograds(mode):
    x, pads = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), ints(0, 0, 2, 1, 1, 2)
    y = registry.get("PadV3").function(x, pads, mode=mode)
    grad = torch.randn_like(y)
    y.backward(grad)
    same(run("PadV3Grad", grad, pads, mode=mode), x.grad)


@pytest.mark.parametrize(
    "reduction, function", [("add", np.add), ("mul", np.multiply), ("max", np.maximum), ("min", np.minimum)]
)
def test_scatter_reductions(reduction, function):
    indices = torch.tensor([[0, 2, 2], [1, 1, 0]])
    updates = torch.tensor([[3.0, -9, 4], [1, 2, 5]])
    expected = X[0].numpy().copy()
    for row in range(2):
        for column in range(3):
            place = (row, indices[row, column])
            expected[place] = function(expected[place], updates[row, column])
    same(run("ScatterElements", X[0], indices, updates, axis=1, reduction=reduction), expected)


def test_scatter_nd():
    rows, updates = torch.tensor([[1, 0], [0, 2]]), torch.ones(2, 4)
    expected = X.clone()
    expected[1, 0] = expected[0, 2] = 1
    same(run("TensorScatterUpdate", X, rows, updates), expected)
    twice = torch.tensor([[1, 0], [1, 0]])
    assert run("ScatterNdAdd", X, twice, updates)[1, 0].tolist() == (X[1, 0] + 2).tolist()
    same(run("TensorScatterMax", X, rows, updates), torch.maximum(X, torch.where(expected == 1, expected, X)))
    same(run("GatherNd", X, rows), torch.stack([X[1, 0], X[0, 2]]))


def test_view_copy_writes_a_strided_view():
    got = run(
        "ViewCopy", X, ints(2, 2), ints(12, 1), ints(5), torch.tensor([8.0, 9.0]), ints(2, 2), ints(0, 1), ints(0)
    )
    expected = X.clone()
    expected[:, 1, 1:3] = torch.tensor([8.0, 9.0])
    same(got, expected)


def test_index_by_tensor_takes_whole_dimensions():
    rows = ints(1, 0, 2)
    same(run("IndexByTensor", X, [rows], indices_mask=[0, 1]), X[:, rows])
    same(run("IndexByTensor", X, [ints(1), rows], indices_mask=[1, 0, 1]), X[ints(1), :, rows])
    mask = X[0, :, 0] > -6
    same(run("IndexByTensor", X, [mask], indices_mask=[0, 1]), X[:, mask])


def test_index_put():
    sizes = ints(0, 1)
    got = run("IndexPutV2", X, torch.ones(2, 2, 4), sizes, sizes, [ints(2, 2)], accumulate=True)
    assert torch.equal(got[:, 2], X[:, 2] + 2) and torch.equal(got[:, :2], X[:, :2])


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis):
    places = torch.tensor([[0, 2], [1, 5]])
    expected = torch.moveaxis(torch.where(places[..., None] == torch.arange(3), 7, -1), -1, axis)
    assert (
        run("OneHot", places, torch.tensor(3), torch.tensor(7), torch.tensor(-1), axis=axis).tolist()
        == expected.tolist()
    )


@pytest.mark.parametrize(
    "name, function", [("ReduceMin", np.min), ("ReduceProd", np.prod), ("ReduceAll", np.all), ("ReduceAny", np.any)]
)
@pytest.mark.parametrize("axes, keep", [((0, 2), False), ((-1,), True), ((), False)])
def test_reductions(name, function, axes, keep):
    x = X > 3 if name in ("ReduceAll", "ReduceAny") else X / 10
    empty_is_all = {} if name in ("ReduceAll", "ReduceAny") else {"noop_with_empty_axes": False}
    got = run(name, x, ints(*(axes if empty_is_all else axes or (0, 1, 2))), keep_dims=keep, **empty_is_all)
    same(got, np.asarray(function(x.numpy(), axis=axes or None, keepdims=keep)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ReduceMin", "ReduceProd", "ReduceAll", "ReduceAny"])
@pytest.mark.parametrize("axis", [0, -1])
def test_reductions_of_a_scalar(name, axis):
    x = torch.tensor(True) if name in ("ReduceAll", "ReduceAny") else torch.tensor(3)
    assert torch.equal(run(name, x, ints(axis)), x)


def test_empty_axes_may_mean_none():
    assert torch.equal(run("ReduceMin", X, ints(), noop_with_empty_axes=True), X)


@pytest.mark.parametrize("p, order", [(2147483647.0, np.inf), (-2147483648.0, -np.inf), (1.0, 1), (3.0, 3)])
def test_norm_orders(p, order):
    expected = np.linalg.norm(X.numpy(), order, axis=1)
    same(run("LpNormV2", X, p=p, axes=[1], epsilon=0.0), expected)


def test_standard_deviation():
    same(
        run("ReduceStdWithMean", X, X.mean((0, 2), keepdim=True).expand_as(X), dim=[0, 2], correction=1),
        X.numpy().std((0, 2), ddof=1),
    )
    with pytest.raises(NotImplementedError, match="invert"):
        run("ReduceStdWithMean", X, X, invert=True)


def test_running_product():
    same(run("Cumprod", X, torch.tensor(1), reverse=True), np.flip(np.cumprod(np.flip(X.numpy(), 1), 1), 1).copy())


def test_sorting_and_searching():
    x = torch.tensor([[3.0, 1, 2, 1]])
    values, places = run("Sort", x, axis=1)
    assert values.tolist() == [[1, 1, 2, 3]] and places.tolist() == [[1, 3, 2, 0]] and places.dtype == torch.int32
    values, places = run("TopKV2", x, torch.tensor(2), largest=False, dim=-1, indices_dtype=9)
    assert values.tolist() == [[1, 1]] and places.dtype == torch.int64
    sequence, wanted = torch.tensor([1.0, 2, 2, 4]), torch.tensor([2.0, 0, 9])
    for right in (False, True):
        found = run("SearchSorted", sequence, wanted, None, dtype=3, right=right)
        assert found.dtype == torch.int32
        same(found, np.searchsorted(sequence, wanted, "right" if right else "left"))
    places, values = run("ArgMaxWithValue", x, dimension=1, keep_dims=True)
    assert places.tolist() == [[0]] and values.tolist() == [[3]]


def test_rounding_modes():
    x = torch.tensor([-2.5, -1.2, 0.5, 1.5, 2.7])
    expected = {
        1: [-2, -1, 0, 2, 3],
        2: [-3, -2, 0, 1, 2],
        3: [-2, -1, 1, 2, 3],
        4: [-3, -1, 1, 2, 3],
        5: [-2, -1, 0, 1, 2],
    }
    for mode, values in expected.items():
        assert run("ForeachRoundOffNumber", [x, x[:2]], torch.tensor([mode]))[0].tolist() == values, mode
    same(run("ForeachRoundOffNumber", [x], torch.tensor([7]))[0], [-0.5, -0.2, 0.5, 0.5, 0.7])
    with pytest.raises(NotImplementedError, match="roundMode must be one of .* got 6"):
        run("ForeachRoundOffNumber", [x], torch.tensor([6]))


def test_foreach_scalars():
    x = [torch.tensor([1.0, 2]), torch.tensor([3.0])]
    assert [t.tolist() for t in run("ForeachAddScalarList", x, torch.tensor([1.0, 2]))] == [[2, 3], [5]]
    assert [t.tolist() for t in run("ForeachMulScalar", x, torch.tensor(2.0))] == [[2, 4], [6]]
    with pytest.raises(ValueError, match="one for each of 2 tensors, got 0"):
        run("ForeachAddScalarList", x, torch.tensor([]))
    assert run("ForeachExp", []) == []


def test_convolution_with_unlike_sides():
    x, weight = torch.randn(1, 2, 6, 5), torch.randn(4, 1, 3, 2)
    got = run("Conv2D", x, weight, strides=[1, 1, 2, 1], pads=[1, 0, 0, 2], groups=2, data_format="NCHW")
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (1, 0), (0, 2)])
    expected = np.zeros(got.shape, np.float32)
    for channel, row, column in np.ndindex(*expected.shape[1:]):
        window = padded[0, channel // 2, row * 2 : row * 2 + 3, column : column + 2]
        expected[0, channel, row, column] = (window * weight[channel, 0].numpy()).sum()
    same(got, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(NotImplementedError, match="data_format must be NCHW or NCDHW, got 'NHWC'"):
        run("Conv2D", x, weight, strides=[1, 1, 1, 1], pads=[0, 0, 0, 0])
    with pytest.raises(NotImplementedError, match="same on both sides"):
        run("Conv2DTranspose", ints(0, 0, 0, 0), x, weight, strides=[1, 1, 1, 1], pads=[1, 0, 0, 0], data_format="NCHW")


def test_batch_norm_gradients_are_autograds():
    x = torch.randn(4, 3, 5, 2, requires_grad=True)
    scale, offset = torch.rand(3, requires_grad=True), torch.rand(3, requires_grad=True)
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    y = (x - mean.view(1, 3, 1, 1)) * torch.rsqrt(variance + 1e-5).view(1, 3, 1, 1) * scale.view(
        1, 3, 1, 1
    ) + offset.view(1, 3, 1, 1)
    grad = torch.randn_like(y)
    y.backward(grad)
    mean, variance, plain = mean.detach(), variance.detach(), x.detach()
    diff_scale, diff_offset = run("BNTrainingUpdateGrad", grad, plain, mean, variance, epsilon=1e-5)
    same(diff_scale, scale.grad, rtol=1e-4, atol=1e-5)
    same(diff_offset, offset.grad, rtol=1e-4, atol=1e-5)
    args = (grad, plain, diff_scale, diff_offset, scale.detach(), mean, variance)
    same(run("BNTrainingReduceGrad", *args, epsilon=1e-5), x.grad, rtol=1e-4, atol=1e-5)
    inferred = run("BNInfer", plain, scale.detach(), offset.detach(), mean, variance, epsilon=1e-5)
    same(inferred, y.detach(), rtol=1e-4, atol=1e-5)


def test_group_norm():
    x = torch.randn(2, 6, 5)
    y, mean, variance = run("GroupNorm", x, torch.ones(6), torch.zeros(6), num_groups=3, eps=0.0)
    groups = x.numpy().reshape(2, 3, -1)
    same(mean, groups.mean(-1), rtol=1e-4, atol=1e-5)
    same(variance, groups.var(-1), rtol=1e-4, atol=1e-5)
    same(
        y,
        ((groups - groups.mean(-1, keepdims=True)) / groups.std(-1, keepdims=True)).reshape(2, 6, 5),
        rtol=1e-3,
        atol=1e-4,
    )


# Gradient type -> (forward, the order of (gradient, x, y) among its inputs, attributes).
GRADIENTS = {
    "ReluGrad": ("Relu", "gx", {}),
    "SigmoidGrad": ("Sigmoid", "yg", {}),
    "TanhGrad": ("Tanh", "yg", {}),
    "SoftmaxGrad": ("SoftmaxV2", "yg", {"axes": [1]}),
    "GeluGrad": ("Gelu", "gxy", {}),
    "SwishGrad": ("Swish", "gxy", {"scale": 1.5}),
    "EluGradV2": ("Elu", "gx", {"alpha": 0.7, "scale": 1.3, "input_scale": 0.9}),
    "LeakyReluGrad": ("LeakyRelu", "gx", {"negative_slope": 0.2}),
    "HardSwishGrad": ("HardSwish", "gx", {}),
    "HardSigmoidGrad": ("HardSigmoid", "gx", {"alpha": 0.3, "beta": 0.4}),
    "GLUGrad": ("GLU", "gx", {"dim": 1}),
}


@pytest.mark.parametrize("ge_type", GRADIENTS)
def test_activation_gradients_are_autograds(ge_type):
    forward, order, attributes = GRADIENTS[ge_type]
    x = (torch.randn(3, 8, dtype=torch.float64) * 2).requires_grad_()
    y = registry.get(forward).function(x, **attributes)
    grad = torch.randn_like(y)
    y.backward(grad)
    given = {"g": grad, "x": x.detach(), "y": y.detach()}
    same(run(ge_type, *(given[name] for name in order), **attributes), x.grad)


def test_every_kernel_says_what_it_computes():
    """An operator's module does so itself: see test_house."""
    declared = {kernel.type for operator in operators.every().values() for kernel in operator.ge}
    silent = [
        name
        for name in set(registry.known_types()) - declared
        if not (registry.get(name).function.__doc__ or "").startswith("GE ")
    ]
    assert not silent


def test_scalar_is_refused_by_gather():
    with pytest.raises(ValueError, match="got a scalar"):
        run("GatherV2", torch.tensor(1.0), ints(0), torch.tensor(0))


def test_embedding_gradient_stays_inside_its_result():
    """torch's kernel adds a row to wherever an index leads."""
    grad = torch.ones(3, 2)
    same(run("EmbeddingDenseGrad", grad, ints(1, -1, 1), num_weights=3), [[0, 0], [2, 2], [0, 0]])
    for index in (3, 10**9, -2):
        with pytest.raises(ValueError, match=f"indices must be from 0 to num_weights - 1 = 2, got .*{index}"):
            run("EmbeddingDenseGrad", grad, ints(0, index, 1), num_weights=3)


def test_re_routing_adds_counts_exactly():
    with pytest.raises(ValueError, match="must be >= 0 and sum to 0, got sum 18446744073709551616"):
        run("MoeReRouting", torch.zeros(0, 4, dtype=torch.int8), ints([2**62] * 4))


@pytest.mark.parametrize(("ge_type", "shape"), [("FFT", (0, 4)), ("FFT2D", (2, 0, 3, 4))])
def test_a_transform_of_nothing_is_nothing(ge_type, shape):
    found = run(ge_type, torch.zeros(shape, dtype=torch.complex64))
    assert (found.shape, found.dtype) == (shape, torch.complex64)
