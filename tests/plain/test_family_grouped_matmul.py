"""npu_grouped_matmul on CPU tensors: the fallback against loops, the fake implementation against the fallback, the gradient, errors."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import moe_graph  # noqa: F401  registers the operator
from family import grouped_matmul as reference
from family.grouped_matmul import numbers, random
from moe_graph.operators.dtypes import to_number
from versions import opcheck

operator = torch.ops.npu.npu_grouped_matmul
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.int32: 0}
FLOATS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
FLOAT32 = torch.float32


def assert_near(y, expected, dtype):
    assert y.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), torch.from_numpy(expected), rtol=tolerance, atol=tolerance * 4)


def assert_fake_agrees(arguments, keywords, outputs):
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        moved = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, (arguments, keywords))
        fakes = operator(*moved[0], **moved[1])
    assert [(y.shape, y.dtype) for y in fakes] == [(y.shape, y.dtype) for y in outputs]


def call(*arguments, **keywords):
    outputs = operator(*arguments, **keywords)
    assert_fake_agrees(arguments, keywords, outputs)
    return outputs


def test_the_dtypes_of_the_operands_may_be_said():
    x, weight, groups = random((4, 3), FLOAT32, 0), random((2, 3, 5), FLOAT32, 1), torch.tensor([1, 3])
    given = dict(group_list=groups, group_list_type=1, group_type=0, split_item=3)
    number = to_number(FLOAT32)
    (said,), (plain,) = (
        operator([x], [weight], x_dtype=number, weight_dtype=number, **given),
        operator([x], [weight], **given),
    )
    assert torch.equal(said, plain)


@settings(max_examples=60, deadline=None)
@given(reference.groupings(), FLOATS, st.booleans(), st.booleans(), st.sampled_from([2, 3]), st.integers(0, 999))
def test_rows(grouping, dtype, stacked, with_bias, split_item, seed):
    listed, kind, total = grouping
    groups, inner, width = len(listed), 5, 3
    x, weight = random((total, inner), dtype, seed), random((groups, inner, width), dtype, seed + 1)
    bias = random((groups, width), FLOAT32 if dtype != torch.float16 else dtype, seed + 2) if with_bias else None
    weights = [weight] if stacked else list(weight)
    biases = None if bias is None else [bias] if stacked else list(bias)
    (y,) = call([x], weights, bias=biases, group_list=listed, group_list_type=kind, group_type=0, split_item=split_item)
    expected = reference.by_rows(
        numbers(x), numbers(weight), listed, kind, bias=None if bias is None else [(b, False) for b in numbers(bias)]
    )
    assert_near(y, expected, dtype)


@settings(max_examples=30, deadline=None)
@given(reference.groupings(), FLOATS, st.integers(0, 999))
def test_columns(grouping, dtype, seed):
    listed, kind, total = grouping
    x, weight = random((total, 4), dtype, seed).t(), random((total, 3), dtype, seed + 1)
    (y,) = call([x], [weight], group_list=listed, group_list_type=kind, group_type=2, split_item=3)
    assert_near(y, reference.by_columns(numbers(x), numbers(weight), listed, kind), dtype)


def test_columns_of_several_weights():
    x, weights = random((4, 9), FLOAT32, 0), [random((size, 3), FLOAT32, size) for size in (2, 0, 5)]
    outputs = call([x], weights, group_type=2, split_item=0)
    for y, part, weight in zip(outputs, x[:, :7].split([2, 0, 5], 1), weights):
        assert_near(y, reference.product(numbers(part), numbers(weight)), FLOAT32)


@pytest.mark.parametrize("leading", [(), (2,), (2, 1, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_separate_tensors(leading, dtype):
    shapes = [(3, 4, 5), (0, 2, 3), (1, 6, 1)]
    x = [random((*leading, m, k), dtype, 1) for m, k, _ in shapes]
    weight = [random((k, n), dtype, 2) for _, k, n in shapes]
    bias = [random((n,), dtype, 3) for *_, n in shapes]
    outputs = call(x, weight, bias=bias, group_type=-1)
    for y, a, b, c in zip(outputs, x, weight, bias):
        assert y.shape == (*a.shape[:-1], b.shape[-1])
        expected = reference.product(numbers(a.flatten(0, -2)), numbers(b), (numbers(c), False))
        assert_near(y.flatten(0, -2), expected, dtype)


@pytest.mark.parametrize("listed", [None, [3, 3, 4]])
def test_several_x_into_one_output(listed):
    x, weight = [random((size, 4), FLOAT32, size) for size in (3, 0, 1)], [random((4, 2), FLOAT32, i) for i in range(3)]
    group_list = None if listed is None else torch.tensor(listed)
    (y,) = call(x, weight, group_list=group_list, group_type=0, split_item=2)
    assert torch.equal(y, torch.cat([a @ b for a, b in zip(x, weight)]))


@settings(max_examples=60, deadline=None)
@given(
    reference.groupings(max_groups=3, max_size=4),
    st.sampled_from([None, torch.bfloat16, FLOAT32]),
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.sampled_from([None, torch.int32, FLOAT32]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1, 2, 4, 5]),
    st.integers(0, 999),
)
def test_int8(grouping, scale_dtype, dtype, bias_dtype, stacked, per_token, act_type, seed):
    listed, kind, total = grouping
    groups, inner, width = len(listed), 7, 3
    x, weight = random((total, inner), torch.int8, seed), random((groups, inner, width), torch.int8, seed + 1)
    scaled = scale_dtype is not None
    if not scaled:
        dtype, per_token, act_type = torch.int32, False, 0
        bias_dtype = bias_dtype and torch.int32
    scale = (random((groups, width), FLOAT32, seed + 2) * 1e-3).to(scale_dtype) if scaled else None
    tokens = random((total,), FLOAT32, seed + 3).abs() if per_token else None
    bias = random((groups, width), bias_dtype, seed + 4) if bias_dtype else None

    def listed_for(tensor):
        return None if tensor is None else [tensor] if stacked else list(tensor)

    (y,) = call(
        [x],
        listed_for(weight),
        bias=listed_for(bias),
        scale=listed_for(scale),
        per_token_scale=None if tokens is None else [tokens],
        group_list=listed,
        group_list_type=kind,
        group_type=0,
        split_item=3,
        act_type=act_type,
        output_dtype=dtype,
    )
    expected = reference.by_rows(
        numbers(x),
        numbers(weight),
        listed,
        kind,
        scale=numbers(scale),
        token_scale=numbers(tokens),
        act_type=act_type,
        bias=None if bias is None else [(b, bias_dtype == torch.int32) for b in numbers(bias)],
    )
    assert_near(y, expected, dtype)


def test_int8_sums_are_exact_beyond_float32():
    x, weight = torch.full((1, 60000), -128, dtype=torch.int8), torch.full((60000, 1), -128, dtype=torch.int8)
    weight[-1] = 127  # not a multiple of a power of two
    (y,) = operator([x], [weight], group_type=-1, output_dtype=torch.int32)
    assert y.item() == 59999 * 16384 - 128 * 127


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("with_offset", [True, False])
def test_int8_weights_of_a_half_precision_x(dtype, with_offset):
    x, weight = random((5, 4), dtype, 0), random((2, 4, 3), torch.int8, 1)
    scale, offset = random((2, 3), dtype, 2) / 64, random((2, 3), dtype, 3) if with_offset else None
    listed = torch.tensor([2, 5])
    (y,) = call(
        [x],
        [weight],
        antiquant_scale=[scale],
        antiquant_offset=None if offset is None else [offset],
        group_list=listed,
        group_type=0,
        split_item=2,
    )
    offsets = [None, None] if offset is None else numbers(offset)
    expected = reference.by_rows(numbers(x), numbers(weight), listed, 0, antiquant=list(zip(numbers(scale), offsets)))
    assert_near(y, expected, dtype)


@pytest.mark.parametrize("split_item", [0, 1, 2, 3])
@pytest.mark.parametrize("several", [True, False])
def test_group_list_of_integers(split_item, several):
    sizes, ends = [2, 0, 3], [2, 2, 5]
    x, weight = random((5, 4), FLOAT32, 0), [random((4, 2), FLOAT32, i) for i in range(3)]
    parts = list(x.split(sizes))
    ignored = {} if several else {"group_type": 0}  # as torch_npu's overload for integers does
    outputs = operator(parts if several else [x], weight, group_list=ends, split_item=split_item, **ignored)
    expected = [part @ matrix for part, matrix in zip(parts, weight)]
    if split_item > 1:
        expected = [torch.cat(expected)]
    torch.testing.assert_close(outputs, expected)


def gradient_inputs(*tensors):
    return [tensor.double().float().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("stacked", [True, False])
def test_gradient_of_rows(kind, stacked):
    sizes = [2, 0, 3]
    counts = torch.tensor(sizes)
    order = torch.tensor([2, 0, 1])
    listed = {0: counts.cumsum(0), 1: counts, 2: torch.stack((order, counts[order]), 1)}[kind]
    x, weight, bias = gradient_inputs(
        random((6, 4), FLOAT32, 0), random((3, 4, 2), FLOAT32, 1), random((3, 2), FLOAT32, 2)
    )
    upstream = random((6, 2), FLOAT32, 3)

    def own(x, weight, bias):
        weights, biases = ([weight], [bias]) if stacked else (weight.unbind(), bias.unbind())
        (y,) = operator([x], weights, bias=biases, group_list=listed, group_list_type=kind, group_type=0, split_item=3)
        return y

    def composed(x, weight, bias):
        outputs, start = [], 0
        for group in order.tolist() if kind == 2 else range(3):
            rows = x[start : start + sizes[group]]
            outputs.append(rows @ weight[group] + bias[group])
            start += sizes[group]
        return torch.cat([*outputs, x.new_zeros(1, 2)])

    assert_same_gradients(own, composed, (x, weight, bias), upstream)


def assert_same_gradients(own, composed, inputs, upstream):
    """First and second derivatives."""
    results = []
    for function in (own, composed):
        first = torch.autograd.grad(function(*inputs), inputs, upstream.requires_grad_(), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (*inputs, upstream), allow_unused=True)
        results.append([g if g is not None else torch.zeros(()) for g in (*first, *second)])
    for mine, theirs in zip(*results):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", [0, 1])
def test_gradient_of_columns(kind):
    counts = torch.tensor([2, 0, 3])
    x, weight = gradient_inputs(random((4, 5), FLOAT32, 0), random((5, 2), FLOAT32, 1))
    listed = counts if kind else counts.cumsum(0)

    def own(x, weight):
        return operator([x], [weight], group_list=listed, group_list_type=kind, group_type=2, split_item=2)[0]

    def composed(x, weight):
        return torch.stack([a @ b for a, b in zip(x.split([2, 0, 3], 1), weight.split([2, 0, 3]))])

    assert_same_gradients(own, composed, (x, weight), random((3, 4, 2), FLOAT32, 2))


@pytest.mark.parametrize("form", ["separate", "columns", "joined", "integers", "integers joined"])
def test_gradient_of_separate_tensors(form):
    x = gradient_inputs(random((5, 4), FLOAT32, 0))[0]
    wide = gradient_inputs(random((3, 7), FLOAT32, 5))[0]
    weight = gradient_inputs(*(random((4, 2), FLOAT32, i) for i in range(2)))
    parts = x[:2], x[2:]
    products = [part @ matrix for part, matrix in zip(parts, weight)]
    expected = products
    if form == "separate":
        outputs = operator(parts, weight, group_type=-1)
    elif form == "columns":
        weight = [weight[0], weight[1][:2]]
        outputs, x = operator([wide], weight, group_type=2, split_item=0), wide
        expected = [wide[:, :4] @ weight[0], wide[:, 4:6] @ weight[1]]
    elif form == "joined":
        outputs, expected = operator(parts, weight, group_type=0, split_item=3), [torch.cat(products)]
    elif form == "integers":
        outputs = operator([x], weight, group_list=[2, 5], split_item=1)
    else:
        outputs, expected = operator([x], weight, group_list=[2, 5], split_item=2), [torch.cat(products)]
    inputs = [x, *weight]
    upstream = [random(y.shape, FLOAT32, 9) for y in outputs]
    torch.testing.assert_close(
        torch.autograd.grad(outputs, inputs, upstream, allow_unused=True),
        torch.autograd.grad(expected, inputs, upstream, allow_unused=True),
    )


def test_gradient_of_separate_biases():
    x, bias = random((3, 2, 4), FLOAT32, 0), gradient_inputs(random((5,), FLOAT32, 1))[0]
    (y,) = operator([x], [random((4, 5), FLOAT32, 2)], bias=[bias], group_type=-1)
    y.sum().backward()
    assert torch.equal(bias.grad, torch.full((5,), 6.0))


def test_no_gradient_of_quantized_calls():
    x = random((3, 4), torch.float16, 0).requires_grad_()
    scale = random((2,), torch.float16, 1)
    call = functools.partial(operator, antiquant_scale=[scale], group_type=-1)
    weight, message = (
        random((4, 2), torch.int8, 0),
        "x and weight must be of one floating point dtype where a gradient is required",
    )
    (result,) = call([x], [weight])  # as torch_npu's own, which records none
    with torch.no_grad():
        assert torch.equal(result, call([x], [weight])[0])
    with pytest.raises(RuntimeError, match=message):
        result.sum().backward()
    with pytest.raises(NotImplementedError, match=message):  # a tangent would be lost without a word
        torch.func.jvp(lambda x: call([x], [weight])[0], (x.detach(),), (x.detach(),))


@pytest.mark.parametrize("kind", [0, 1])
def test_opcheck(kind):
    x, weight = gradient_inputs(random((5, 4), FLOAT32, 0), random((2, 4, 3), FLOAT32, 1))
    keywords = {"group_list": torch.tensor([3, 5] if kind == 0 else [3, 2]), "group_type": 0, "split_item": 3}
    opcheck(operator.default, ([x], [weight]), {**keywords, "group_list_type": kind})


def test_opcheck_of_integers():
    x = random((5, 4), FLOAT32, 0)
    weight = [random((4, 3), FLOAT32, i) for i in (1, 2)]
    opcheck(operator.List, ([x], weight), {"group_list": [2, 5], "split_item": 0})


def test_symbolic_sizes_need_one_graph():
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    @torch.compile(backend=backend, dynamic=True, fullgraph=True)
    def run(x, weight, listed):
        return torch.ops.npu.npu_grouped_matmul([x], [weight], group_list=listed, group_type=0, split_item=3)[0] + 1

    for rows in (6, 9, 40):
        x, weight, listed = random((rows, 4), FLOAT32, 0), random((2, 4, 3), FLOAT32, 1), torch.tensor([2, rows])
        expected = torch.cat([x[:2] @ weight[0], x[2:] @ weight[1]]) + 1
        torch.testing.assert_close(run(x, weight, listed), expected)
    assert len(graphs) == 1


def test_training_compiles():
    weight = gradient_inputs(random((2, 4, 3), FLOAT32, 1))[0]
    x, listed = random((6, 4), FLOAT32, 0), torch.tensor([2, 6])

    def loss(weight):
        return operator([x], [weight], group_list=listed, group_type=0, split_item=3)[0].square().sum()

    (expected,) = torch.autograd.grad(loss(weight), weight)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(weight), weight)[0], expected)


X, W, GROUPS = random((4, 3), FLOAT32, 0), random((2, 3, 5), FLOAT32, 0), torch.tensor([1, 4])


def test_a_call_without_a_tensor_is_a_runtime_error_too_as_without_this_package():
    for kind in (ValueError, NotImplementedError):
        with pytest.raises(kind, match="x and weight must be lists with a tensor in them, got 0 tensors"):
            call([], [], split_item=0)


X8, W8 = random((4, 3), torch.int8, 0), random((2, 3, 5), torch.int8, 0)
ROWS = {"group_type": 0, "split_item": 3, "group_list": GROUPS}


@pytest.mark.parametrize(
    ("x", "weight", "keywords", "message"),
    [
        ([X], [W], {}, "group_type must be one of -1, 0, 2, got None"),
        ([X], [W], {"group_type": 1}, "group_type must be one of -1, 0, 2, got 1"),
        ([], [W], ROWS, "x must be a list of 1 to 128 tensors, got 0 tensors"),
        ([X], [W], {**ROWS, "split_item": 4}, "split_item must be one of 0, 1, 2, 3|split_item must be from 0 to 3"),
        ([X], [W], {**ROWS, "split_item": 0}, "split_item must be 2 or 3 with group_type 0"),
        ([X], [W[0]], {"group_type": -1, "split_item": 2}, "split_item must be 0 or 1 with group_type -1"),
        ([X], [W[0]], {"group_type": -1, "group_list": GROUPS}, "group_list must be None with group_type -1"),
        ([X], [W], {**ROWS, "group_list": None}, "group_list must be given with group_type 0 and one x, got None"),
        ([X], [W], {**ROWS, "group_list": GROUPS.int()}, "group_list must be of dtype torch.int64, got torch.int32"),
        ([X], [W], {**ROWS, "group_list": torch.tensor([4])}, "group_list must be of G = 2"),
        (
            [X],
            [W],
            {**ROWS, "group_list": torch.tensor([1, 5])},
            "group_list must be .* up to x's 4 in all, got .1, 5.",
        ),
        ([X], [W], {**ROWS, "group_list": torch.tensor([3, 1])}, "group_list must be non-negative and non-decreasing"),
        ([X], [W], {**ROWS, "group_list_type": 3}, "group_list_type must be one of 0, 1, 2, got 3"),
        ([X], [W], {**ROWS, "group_list_type": 2}, r"group_list must be of shape \[G, 2\]"),
        (
            [X],
            [W],
            {**ROWS, "group_list_type": 2, "group_list": torch.tensor([[0, 1], [2, 3]])},
            "group_list must be pairs with different groups from 0 to 1",
        ),
        ([X], [W[:, :2]], ROWS, r"weight must be of K = 3, x's last size, got shape \(2, 2, 5\)"),
        ([X.double()], [W.double()], ROWS, "x must be of dtype .*, got torch.float64"),
        ([X], [W.half()], ROWS, "weight must be of dtype torch.float32, got torch.float16"),
        ([X8], [W8.int()], ROWS, "scale must be given with weights of int4"),
        ([X8], [W8.short()], ROWS, "weight must be of dtype torch.int8, got torch.int16"),
        ([X8], [W8], ROWS, "output_dtype must be torch.int32 for int8 x without scale, got None"),
        ([X], [W], {**ROWS, "output_dtype": torch.float16}, "output_dtype must be None or x's, torch.float32, got"),
        ([X], [W], {**ROWS, "act_type": 1}, "act_type must be 0"),
        ([X], [W], {**ROWS, "bias": [W[0, 0]]}, r"bias must be of shape \[G, N\]"),
        ([X], [W], {**ROWS, "bias": [W[:, 0].half()]}, "bias must be of dtype torch.float32"),
        ([X], [W], {**ROWS, "offset": [W[:, 0]]}, "offset must be None"),
        ([X], [W], {**ROWS, "scale": [W[:, 0]]}, r"scale must be None \(x is not int8\)"),
        ([X], [W], {**ROWS, "x_dtype": 290}, "only Ascend 950 has it, the product is A2"),
        ([X, X], [W], ROWS, "x must be as many tensors as weight, 1, got 2 tensors"),
        ([X.half()], [W8], ROWS, "antiquant_scale must be given"),
        ([X], [X, X], {"group_type": 2, "split_item": 3}, "weight must be one tensor with group_type 2"),
        (
            [X8],
            [W8],
            {**ROWS, "scale": [W[:, 0]], "output_dtype": torch.float16, "act_type": 3},
            "act_type must be one of 0, 1, 2, 4, 5, got 3",
        ),
        (
            [X8],
            [W8],
            {**ROWS, "scale": [W[:, 0]], "output_dtype": torch.float16, "per_token_scale": [W[0, 0]]},
            r"per_token_scale must be of shape \[M\], M = 4",
        ),
        ([X], [W[0]], {"group_list": [2, 1], "split_item": 3}, "group_list must be of weight's length"),
        (
            [X],
            list(W),
            {"group_list": [2, 4], "split_item": 3, "group_type": 2},
            "group_type must be one of None, -1, 0, got 2",
        ),
        ([X], list(W), {"group_list": [2, 1], "split_item": 3}, "group_list must be non-negative and non-decreasing"),
    ],
)
def test_errors(x, weight, keywords, message):
    with pytest.raises(ValueError, match=message):
        operator(x, weight, **keywords)
