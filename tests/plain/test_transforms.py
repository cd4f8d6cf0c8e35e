"""Every differentiable operator under torch.func, forward-mode AD, vmap and torch.compile, against Jacobians and loops of plain calls."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.testing import assert_close

import moe_graph
from moe_graph import operators
from versions import need_torch

npu = torch.ops.npu
TOLERANCE = dict(rtol=2e-3, atol=2e-3)  # float32, sums in different orders
BATCH = 3


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


def permutations(count, length, width):
    generator = torch.Generator().manual_seed(count)
    rows = [torch.randperm(length, generator=generator)[:width] for _ in range(count)]
    return torch.stack(rows)


def apart(count, length):
    """Rows whose order a small step does not change."""
    return permutations(count, length, length) * 0.4 - 1


COUNTS = torch.tensor([[2, 1, 0], [0, 2, 1]])
CHOSEN = permutations(6, 4, 2)
PLACES = CHOSEN.flatten().argsort(stable=True).argsort().int()
BY_COLUMNS = PLACES.view(6, 2).t().reshape(-1)
ENDS, SIZES, PAIRS = torch.tensor([2, 5, 9]), torch.tensor([2, 3, 4]), torch.tensor([[1, 4], [0, 2], [2, 3]])
RANGE = dict(expert_num=4, active_expert_range=[0, 4])
ROWS, COLUMNS, APART = dict(split_item=3, group_type=0), dict(split_item=3, group_type=2), dict(group_type=-1)

# name -> (function of differentiable tensors, those tensors)
CASES = {
    "re_routing": (lambda x: npu.npu_moe_re_routing(x, COUNTS)[0], [normal(6, 3)]),
    "re_routing scales": (
        lambda x, s: npu.npu_moe_re_routing(x, COUNTS, per_token_scales=s, idx_type=1, expert_token_num_type=0)[:2],
        [normal(6, 3), normal(6)],
    ),
    "re_routing of bytes": (
        lambda s: npu.npu_moe_re_routing(torch.zeros(6, 2, dtype=torch.int8), COUNTS, per_token_scales=s)[1],
        [normal(6, 2)],
    ),
    "un_routing": (lambda x: moe_graph.moe_un_routing(x, COUNTS).tokens, [normal(6, 3)]),
    "npu_swiglu": (npu.npu_swiglu, [normal(4, 6)]),
    "npu_swiglu dim 0": (lambda x: npu.npu_swiglu(x, 0), [normal(4, 3)]),
    "npu_swiglu_backward": (npu.npu_swiglu_backward, [normal(4, 3), normal(4, 6)]),
    "npu_moe_token_permute": (lambda x: npu.npu_moe_token_permute(x, CHOSEN, 5)[0], [normal(6, 3)]),
    "npu_moe_token_unpermute": (
        lambda x, p: npu.npu_moe_token_unpermute(x, PLACES, p),
        [normal(12, 3), normal(6, 2)],
    ),
    "npu_moe_gating_top_k_softmax": (lambda x: npu.npu_moe_gating_top_k_softmax(x, k=2)[0], [apart(4, 6)]),
    "npu_moe_gating_top_k": (
        lambda x: npu.npu_moe_gating_top_k(x, 2, norm_type=1, k_group=1, group_count=2, out_flag=True)[::2],
        [apart(4, 6)],
    ),
    "npu_moe_finalize_routing": (
        lambda x, skip, bias, scales: npu.npu_moe_finalize_routing(
            x, skip, None, bias, scales, BY_COLUMNS, CHOSEN.int()
        ),
        [normal(12, 2), normal(6, 2), normal(4, 2), normal(6, 2)],
    ),
    "npu_moe_init_routing_v2": (
        lambda x, s: npu.npu_moe_init_routing_v2(x, CHOSEN.int(), scale=s, **RANGE)[::3],
        [normal(6, 2), normal(6)],
    ),
    "npu_moe_init_routing_v2 capacity": (
        lambda x: npu.npu_moe_init_routing_v2(x, CHOSEN.int(), drop_pad_mode=1, expert_capacity=2, **RANGE)[0],
        [normal(6, 2)],
    ),
    "npu_grouped_matmul": (
        lambda x, w, b: npu.npu_grouped_matmul([x], [w], bias=[b], group_list=SIZES, group_list_type=1, **ROWS),
        [normal(10, 2), normal(3, 2, 3), normal(3, 3)],
    ),
    "npu_grouped_matmul list": (
        lambda x, a, b, c: npu.npu_grouped_matmul([x], [a, b, c], group_list=ENDS, **ROWS),
        [normal(10, 2), *(normal(2, 3) + i for i in range(3))],
    ),
    "npu_grouped_matmul pairs": (
        lambda x, w: npu.npu_grouped_matmul([x], [w], group_list=PAIRS, group_list_type=2, **ROWS),
        [normal(10, 2), normal(3, 2, 3)],
    ),
    "npu_grouped_matmul columns": (
        lambda x, w: npu.npu_grouped_matmul([x], [w], group_list=ENDS, **COLUMNS),
        [normal(3, 10), normal(10, 2)],
    ),
    "npu_grouped_matmul apart": (
        lambda x, y, a, b, c: npu.npu_grouped_matmul([x, y], [a, b], bias=[c, c + 1], **APART),
        [normal(2, 3, 2), normal(1, 3, 2), normal(2, 3), normal(2, 3) + 1, normal(3)],
    ),
    "npu_grouped_matmul.List": (
        lambda x, a, b: npu.npu_grouped_matmul.List([x], [a, b], group_list=[3, 7]),
        [normal(10, 2), normal(2, 3), normal(2, 3) + 1],
    ),
}
cases = pytest.mark.parametrize("function, inputs", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def no_slow_fallback():
    """vmap says so where it has no rule for an operator."""
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop")
        yield


def joined(function):
    def call(*inputs):
        results = function(*inputs)
        return torch.cat([x.reshape(-1) for x in ([results] if isinstance(results, torch.Tensor) else results)])

    return call


def jacobians(function, inputs):
    """By plain reverse-mode autograd, an element of the result at a time."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    rows = [
        torch.autograd.grad(y, leaves, retain_graph=True, materialize_grads=True) for y in joined(function)(*leaves)
    ]
    return [torch.stack(of_input) for of_input in zip(*rows)]


def test_every_differentiable_operator_is_among_the_cases():
    differentiable = {operator.name for operator in operators.OPERATORS if "Autograd" in operator.kernels}
    assert differentiable == {name.partition(" ")[0] for name in CASES if name.startswith("npu_")}


@cases
def test_reverse_and_forward_agree_with_differences(function, inputs):
    f, tangents = joined(function), [normal(*x.shape).flip(0) for x in inputs]
    step = 1e-2
    ahead, behind = ([x + sign * step * t for x, t in zip(inputs, tangents)] for sign in (1, -1))
    expected = (f(*ahead) - f(*behind)) / (2 * step)
    by_rows = sum((j * t).flatten(1).sum(1) for j, t in zip(jacobians(function, inputs), tangents))
    assert expected.abs().sum() > 0
    assert_close(by_rows, expected, rtol=5e-2, atol=5e-2)
    assert_close(jvp(f, tuple(inputs), tuple(tangents))[1], by_rows, **TOLERANCE)


@cases
def test_torch_func(function, inputs):
    f, every = joined(function), tuple(range(len(inputs)))
    expected, weights = jacobians(function, inputs), joined(function)(*inputs).cos()

    def loss(*inputs):
        return (f(*inputs).square() * weights).sum()

    for found in (jacrev(f, every)(*inputs), jacfwd(f, every)(*inputs)):
        assert_close(found, tuple(expected), **TOLERANCE)
    for position, jacobian in enumerate(expected):  # a tangent of one input alone
        of_one = jvp(
            lambda x, i=position: f(*inputs[:i], x, *inputs[i + 1 :]), (inputs[position],), (inputs[position],)
        )
        assert_close(of_one[1], (jacobian * inputs[position]).flatten(1).sum(1), **TOLERANCE)
    by_weights = tuple(torch.tensordot(weights, jacobian, 1) for jacobian in expected)
    assert_close(vjp(f, *inputs)[1](weights), by_weights, **TOLERANCE)
    assert_close(hessian(loss, every)(*inputs), jacrev(jacrev(loss, every), every)(*inputs), rtol=1e-2, atol=1e-2)
    batches = [torch.stack([x, x + 0.1, -x]) for x in inputs]
    by_sample = [torch.stack(each) for each in zip(*(grad(loss, every)(*sample) for sample in zip(*batches)))]
    assert_close(vmap(grad(loss, every))(*batches), tuple(by_sample), **TOLERANCE)


@cases
def test_vmap(function, inputs):
    f = joined(function)
    batches = [torch.stack([x, x + 0.1, -x]) for x in inputs]
    assert_close(vmap(f)(*batches), torch.stack([f(*sample) for sample in zip(*batches)]), **TOLERANCE)
    for position, batch in enumerate(batches):  # a batch of one input alone, as its last dimension

        def of_one(x, i=position):
            return f(*inputs[:i], x, *inputs[i + 1 :])

        expected = torch.stack([of_one(x) for x in batch], -1)
        assert_close(vmap(of_one, in_dims=-1, out_dims=-1)(batch.movedim(0, -1)), expected, **TOLERANCE)


@cases
def test_the_older_vmap(function, inputs):
    """torch.autograd.grad with is_grads_batched, and what is built on it."""
    f, expected = joined(function), jacobians(function, inputs)
    jacobian = torch.autograd.functional.jacobian
    assert_close(jacobian(f, tuple(inputs), vectorize=True), tuple(expected), **TOLERANCE)
    forward = jacobian(f, tuple(inputs), vectorize=True, strategy="forward-mode")
    assert_close(forward, tuple(expected), **TOLERANCE)


@pytest.mark.slow
@cases
def test_gradcheck(function, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*double precision")
        options = dict(eps=1e-2, atol=1e-1, rtol=1e-1, check_batched_grad=True)
        torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_forward_grad=True, **options)
        torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, **options)


@pytest.mark.parametrize("name", ["re_routing scales", "npu_swiglu", "npu_moe_init_routing_v2", "npu_grouped_matmul"])
@pytest.mark.parametrize(
    "transform", ["grad", "jvp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vmap", "jacfwd"))]
)
def test_compiled(name, transform):
    need_torch(2, 4)
    function, inputs = CASES[name]
    f, every = joined(function), tuple(range(len(inputs)))
    transformed = {
        "grad": grad(lambda *x: f(*x).square().sum(), every),
        "jvp": lambda *x: jvp(f, x, x)[1],
        "vmap": lambda *x: vmap(f)(*(torch.stack([y, -y]) for y in x)),
        "jacfwd": jacfwd(f, every),
    }[transform]
    torch._dynamo.reset()
    compiled = torch.compile(transformed, backend="aot_eager", fullgraph=True)
    assert_close(compiled(*inputs), transformed(*inputs), **TOLERANCE)


SEVERAL = torch.stack([COUNTS, COUNTS.flip(1), torch.tensor([[6, 0, 0], [0, 0, 0]])])
SCALES, OF_TOKENS, TOKENS = normal(3, 4), normal(10), normal(6, 3)
ROUTES = torch.stack([permutations(6, 4, 2).roll(i, 0) for i in range(BATCH)])
INTS = torch.arange(BATCH * 10 * 4, dtype=torch.int32).sin().mul(9).to(torch.int8).view(BATCH, 10, 4)
# Batches of what is not differentiable, alone and beside tokens.
BATCHES = {
    "re_routing": (lambda x, c: npu.npu_moe_re_routing(x, c), [normal(BATCH, 6, 3), SEVERAL]),
    "re_routing counts": (
        lambda c: npu.npu_moe_re_routing(
            TOKENS, c, per_token_scales=TOKENS[:, :2], idx_type=1, expert_token_num_type=0
        ),
        [SEVERAL],
    ),
    "re_routing bytes": (lambda x: npu.npu_moe_re_routing(x, SEVERAL[0])[0], [INTS[:, :6]]),
    "token_permute": (npu.npu_moe_token_permute, [normal(BATCH, 6, 3), ROUTES]),
    "token_unpermute": (
        npu.npu_moe_token_unpermute,
        [normal(BATCH, 12, 3), permutations(BATCH, 12, 12), normal(BATCH, 6, 2)],
    ),
    "finalize": (
        lambda x, i: npu.npu_moe_finalize_routing(x, None, None, None, None, i, None, 2, 2),
        [normal(BATCH, 12, 3), permutations(BATCH, 12, 12).int()],
    ),
    "gating_softmax": (
        lambda x, f: npu.npu_moe_gating_top_k_softmax(x, f, k=2),
        [normal(BATCH, 4, 6), normal(BATCH, 4) > 0],
    ),
    "gating bias": (
        lambda x, b: npu.npu_moe_gating_top_k(x, 2, bias=b, norm_type=1),
        [normal(BATCH, 4, 6), normal(BATCH, 6)],
    ),
    **{
        f"init_routing {keywords}": (
            lambda x, i, keywords=keywords: npu.npu_moe_init_routing_v2(
                x, i, expert_tokens_num_flag=True, **{**RANGE, **keywords}
            ),
            [normal(BATCH, 6, 3), ROUTES.int()],
        )
        for keywords in (
            dict(active_expert_range=[1, 3], row_idx_type=1, expert_tokens_num_type=2),
            dict(drop_pad_mode=1, expert_capacity=2, expert_tokens_num_type=1),
            dict(quant_mode=1, expert_tokens_num_type=1),
        )
    },
    "grouped_matmul groups": (
        lambda x, w, g: npu.npu_grouped_matmul([x], [w], group_list=g, **ROWS),
        [normal(BATCH, 10, 2), normal(BATCH, 3, 2, 3), torch.tensor([[2, 5, 9], [1, 1, 10], [4, 5, 6]])],
    ),
    "grouped_matmul int8": (
        lambda x, p: npu.npu_grouped_matmul(
            [x], [INTS[:, :4]], scale=[SCALES], per_token_scale=[p], group_list=ENDS, output_dtype=15, **ROWS
        ),
        [INTS, normal(BATCH, 10)],
    ),
    "grouped_matmul int8 scale": (
        lambda w, s: npu.npu_grouped_matmul(
            [INTS[0]], [w], scale=[s], per_token_scale=[OF_TOKENS], group_list=ENDS, output_dtype=15, **ROWS
        ),
        [
            INTS.reshape(BATCH, 10, 4)[:, :9, :].reshape(BATCH, 3, 3, 4)[:, :, :1].expand(-1, -1, 4, -1),
            normal(BATCH, 3, 4),
        ],
    ),
}


@pytest.mark.parametrize("function, batches", BATCHES.values(), ids=BATCHES)
def test_vmap_of_routes(function, batches):
    found, expected = vmap(function)(*batches), [function(*sample) for sample in zip(*batches)]
    if isinstance(found, torch.Tensor):
        found, expected = [found], [[x] for x in expected]
    for got, want in zip(found, zip(*expected)):
        assert_close(got, torch.stack(want), **TOLERANCE)


def test_nested_vmap():
    tokens = normal(2, BATCH, 6, 3)
    found = vmap(lambda x: vmap(lambda x, c: npu.npu_moe_re_routing(x, c)[0])(x, SEVERAL))(tokens)
    expected = [[npu.npu_moe_re_routing(x, c)[0] for x, c in zip(of_two, SEVERAL)] for of_two in tokens]
    assert_close(found, torch.stack([torch.stack(row) for row in expected]))


def test_a_sample_does_not_take_anothers_tokens():
    """In one call the samples' counts are added up: too many here and too few there must not pass for the right sum."""
    wrong = SEVERAL.clone()
    wrong[0, 0, 0] += 1
    wrong[1, 0, 0] -= 1
    with pytest.raises(ValueError, match="expert_token_num_per_rank must be counts"):
        vmap(lambda x, c: npu.npu_moe_re_routing(x, c))(normal(BATCH, 6, 3), wrong)
    with pytest.raises(ValueError, match="expert_idx must be from -1 to expert_num - 1 = 3"):
        vmap(lambda x, i: npu.npu_moe_init_routing_v2(x, i, **RANGE))(normal(BATCH, 6, 3), ROUTES.int() + 3)


def test_values_are_looked_at_when_a_compiled_gradient_runs():
    need_torch(2, 4)
    tokens = normal(6, 3).requires_grad_()
    compiled = torch.compile(
        lambda x, i: npu.npu_moe_init_routing_v2(x, i, **RANGE)[0], backend="aot_eager", fullgraph=True
    )
    assert torch.equal(compiled(tokens, CHOSEN.int()), npu.npu_moe_init_routing_v2(tokens, CHOSEN.int(), **RANGE)[0])
    with pytest.raises(RuntimeError, match="expert_idx must be from -1 to expert_num - 1 = 3"):
        compiled(tokens, CHOSEN.int() + 3)
