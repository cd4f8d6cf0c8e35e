"""npu_moe_init_routing_v2 on CPU tensors, against loops from the document."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import moe_graph  # noqa: F401  registers the operator
from family.grouped_matmul import random
from family.quantization import assert_quantized
from family.routing import choose_experts, init_routing, routings
from moe_graph.operators.dtypes import to_number
from versions import need_torch, opcheck

operator = torch.ops.npu.npu_moe_init_routing_v2
FLOATS = [torch.float16, torch.bfloat16, torch.float32]
WIDTH = 5


def assert_is_reference(outputs, x, expert_idx, options, scale, offset):
    expanded, index, counted, expanded_scale = outputs
    mode, flag = options["quant_mode"], options["expert_tokens_num_flag"]
    rows, expected_index, expected_count = init_routing(x, expert_idx, options, scale, offset)
    assert index.dtype == torch.int32
    assert index.tolist() == expected_index
    assert counted.dtype == torch.int64
    assert counted.tolist() == (expected_count if flag else 0)
    assert expanded.dtype == (x.dtype if mode == -1 else torch.int8)
    if options["drop_pad_mode"]:
        assert expanded.shape == (options["expert_num"], options["expert_capacity"], WIDTH)
        expanded = expanded.flatten(0, 1)
    assert expanded.shape == (len(rows), WIDTH)
    assert expanded_scale.dtype == torch.float32
    assert expanded_scale.shape == (() if mode == 0 else (len(rows),))
    padding = [i for i, row in enumerate(rows) if row is None]
    assert not expanded[padding].any()
    assert mode == 0 or not expanded_scale[padding].any()
    real = [i for i, row in enumerate(rows) if row is not None]
    values = [rows[i][0].tolist() for i in real]
    if mode == 1:
        assert_quantized(expanded[real].tolist(), expanded_scale[real].tolist(), values)
    elif mode == 0:
        wanted = torch.tensor(values).reshape(-1, WIDTH)
        assert not values or (expanded[real].double() - wanted).abs().max() <= 1  # float32 against float64
    else:
        assert expanded[real].tolist() == values
        assert scale is None or expanded_scale[real].tolist() == [rows[i][1] for i in real]


@st.composite
def scales(draw, mode, rows, experts):
    """scale and offset that the mode allows."""
    if mode == 0:
        return 50 * random((1,), torch.float32, 1), random((1,), torch.float32, 2)
    shapes = [None, (rows,)] if mode == -1 else [None, (1, WIDTH), (experts, WIDTH)]
    shape = draw(st.sampled_from(shapes))
    return None if shape is None else random(shape, torch.float32, 3), None


@settings(max_examples=150, deadline=None)
@given(routings(), st.sampled_from(FLOATS), st.sampled_from([-1, 0, 1]), st.booleans(), st.data())
def test_dropless(routing, dtype, mode, flag, data):
    expert_idx, experts = routing
    start = data.draw(st.integers(0, experts - 1))
    given_range = data.draw(st.sampled_from([[], [start, data.draw(st.integers(start + 1, experts))]]))
    x = random((len(expert_idx), WIDTH), dtype, 0)
    scale, offset = data.draw(scales(mode, len(x), given_range[1] - start if given_range else experts))
    options = {
        "expert_num": experts,
        "active_expert_range": given_range,
        "active_num": data.draw(st.sampled_from([-1, 0, 1, 3, 1000])),
        "row_idx_type": data.draw(st.sampled_from([0, 1])),
        "expert_tokens_num_type": data.draw(st.sampled_from([0, 1, 2])),
        "expert_tokens_num_flag": flag,
        "quant_mode": mode,
        "drop_pad_mode": 0,
    }
    outputs = operator(x, expert_idx, scale=scale, offset=offset, **options)
    assert_is_reference(outputs, x, expert_idx, options, scale, offset)
    assert_fake_agrees(outputs, x, expert_idx, scale=scale, offset=offset, **options)


@settings(max_examples=100, deadline=None)
@given(routings(), st.sampled_from(FLOATS), st.sampled_from([-1, 0, 1]), st.booleans(), st.data())
def test_drop_pad(routing, dtype, mode, flag, data):
    expert_idx, experts = routing
    if not len(expert_idx):
        expert_idx = expert_idx.new_zeros((1, expert_idx.shape[1]))
    x = random((len(expert_idx), WIDTH), dtype, 0)
    scale, offset = data.draw(scales(mode, len(x), experts))
    options = {
        "expert_num": experts,
        "expert_capacity": data.draw(st.integers(1, len(x))),
        "drop_pad_mode": 1,
        "expert_tokens_num_type": 1,
        "expert_tokens_num_flag": flag,
        "quant_mode": mode,
    }
    outputs = operator(x, expert_idx, scale=scale, offset=offset, **options)
    assert_is_reference(outputs, x, expert_idx, options, scale, offset)
    assert_fake_agrees(outputs, x, expert_idx, scale=scale, offset=offset, **options)


def assert_fake_agrees(outputs, *args, **keywords):
    with FakeTensorMode() as mode:
        fakes = operator(
            *(mode.from_tensor(value) for value in args),
            **{k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in keywords.items()},
        )
    assert [(f.shape, f.dtype) for f in fakes] == [(o.shape, o.dtype) for o in outputs]


def test_int8_tokens_and_their_scales_move_together():
    """As after a dynamic quantization: the row of a token and its scale go to each of its experts."""
    x, scale = random((4, 3), torch.int8, 0), random((4,), torch.float32, 1)
    chosen = torch.tensor([[1, 0], [0, 2], [2, 1], [0, 1]], dtype=torch.int32)
    expanded, index, counts, moved = operator(
        x, chosen, scale=scale, expert_num=3, expert_tokens_num_type=1, expert_tokens_num_flag=True
    )
    assert counts.tolist() == [3, 3, 2]
    assert torch.equal(expanded, x[[0, 1, 3, 0, 2, 3, 1, 2]])
    assert torch.equal(moved, scale[[0, 1, 3, 0, 2, 3, 1, 2]])
    assert torch.equal(expanded[index.long()].view(4, 2, 3), x.unsqueeze(1).expand(4, 2, 3))


def test_gather_and_scatter_index_are_inverse():
    x, chosen = random((50, 2), torch.float32, 0), choose_experts(50, 4, 8, 0)
    gather = operator(x, chosen, expert_num=8)[1].long()
    scatter = operator(x, chosen, expert_num=8, row_idx_type=1)[1].long()
    assert torch.equal(gather[scatter], torch.arange(200))


def test_row_idx_of_inactive_experts():
    """Below the range last and as they come, above it by expert; the operator's page sorts them so."""
    x, chosen = random((3, 2), torch.float32, 0), torch.tensor([[20, 4], [0, 30], [5, 3]], dtype=torch.int32)
    options = {"expert_num": 32, "active_expert_range": [4, 16], "row_idx_type": 1}
    assert operator(x, chosen, **options)[1].tolist() == [1, 4, 0, 3, 2, 5]


@pytest.mark.parametrize(
    "options", [{}, {"quant_mode": 0}, {"quant_mode": 1}, {"drop_pad_mode": 1, "expert_capacity": 2}]
)
def test_no_tokens(options):
    """Nothing is looked at: torch_npu returns before its kernel."""
    counted = {"expert_num": 5, "expert_tokens_num_type": 1, "expert_tokens_num_flag": True, **options}
    given = {"scale": torch.ones(0), "offset": torch.ones(0)} if "quant_mode" in options else {}
    x, chosen = torch.ones(0, 3), torch.ones(0, 2, dtype=torch.int32)
    expanded, index, counts, _ = operator(x, chosen, **counted, **given)
    rows = (5, 2) if options.get("drop_pad_mode") else (0,)
    assert expanded.shape == (*rows, 3) and not expanded.any()
    assert expanded.dtype == (torch.int8 if "quant_mode" in options else torch.float32)
    assert index.shape == (0,) and counts.tolist() == [0] * 5


X, IDX = random((4, 3), torch.float32, 0), choose_experts(4, 2, 5, 0)


@pytest.mark.parametrize("options", [{}, {"quant_mode": 1}, {"drop_pad_mode": 1, "expert_capacity": 2}])
def test_opcheck(options):
    keywords = {"expert_num": 5, "expert_tokens_num_type": 1, "expert_tokens_num_flag": True, **options}
    opcheck(operator.default, (X, IDX), keywords)


def test_symbolic_sizes_give_one_graph():
    need_torch(2, 9)
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    @torch.compile(backend=backend, dynamic=True, fullgraph=True)
    def route(x, expert_idx):
        return operator(x, expert_idx, expert_num=5, active_num=100, expert_tokens_num_flag=True)

    for rows in (4, 9, 60):
        x, chosen = random((rows, 3), torch.float32, rows), choose_experts(rows, 2, 5, rows)
        expected = operator(x, chosen, expert_num=5, active_num=100, expert_tokens_num_flag=True)
        torch.testing.assert_close(route(x, chosen), expected)
    assert len(graphs) == 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_the_dtype_of_x_may_be_said(dtype):
    x, chosen = random((4, 3), torch.float32, 0).to(dtype), choose_experts(4, 2, 5, 0)
    given = dict(expert_num=5, active_num=8, quant_mode=-1)
    for said, plain in zip(operator(x, chosen, x_dtype=to_number(dtype), **given), operator(x, chosen, **given)):
        assert torch.equal(said, plain)


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"quant_mode": 2}, r"quant_mode must be -1, 0 or 1 \(those of float8, .* have no fallback\), got 2"),
        ({"x_dtype": 290}, "x_dtype must be None or the tensor's own, torch.float32 .* got torch_npu.hifloat8"),
        ({"expert_num": -1}, "expert_num must be from 1 to 10240, got -1"),
        ({"expert_num": 5121, "expert_tokens_num_type": 2}, "expert_num must be from 1 to 5120, got 5121"),
        ({"expert_tokens_num_type": 3}, "expert_tokens_num_type must be one of 0, 1, 2, got 3"),
        ({"row_idx_type": 2}, "row_idx_type must be one of 0, 1, got 2"),
        ({"drop_pad_mode": 2}, "drop_pad_mode must be one of 0, 1, got 2"),
        ({"active_num": -2}, "active_num must be -1 or more, got -2"),
        ({"active_expert_range": [2, 2]}, r"active_expert_range must be \[start, end\) with .* = 5, got \[2, 2\]"),
        ({"active_expert_range": [0, 6]}, r"active_expert_range must be .* got \[0, 6\]"),
        ({"expert_num": 2}, "expert_idx must be from -1 to expert_num - 1 = 1, got"),
        ({"offset": ONE}, r"offset must be None \(with quant_mode -1\)"),
        ({"scale": ONE}, r"scale must be of shape \[4\], one for each token, got shape \(1,\)"),
        ({"scale": ONE.double()}, "scale must be of dtype torch.float32, got torch.float64"),
        ({"quant_mode": 0}, "scale must be given with quant_mode 0, got None"),
        ({"quant_mode": 0, "scale": ONE}, "offset must be given with quant_mode 0, got None"),
        ({"quant_mode": 0, "scale": ONE, "offset": torch.ones(2)}, r"offset must be of shape \[1\] with quant_mode 0"),
        ({"quant_mode": 1, "scale": torch.ones(2, 3)}, "scale must be of first size 1 or 5, got shape"),
        ({"quant_mode": 1, "scale": torch.ones(5, 4)}, "scale must be of last size 3, that of x, got shape"),
        ({"drop_pad_mode": 1}, "expert_capacity must be from 1 to the number of tokens with drop_pad_mode 1, got -1"),
        ({"drop_pad_mode": 1, "expert_capacity": 5}, "x must be of at least expert_capacity = 5 tokens"),
        (
            {"drop_pad_mode": 1, "expert_capacity": 2, "active_expert_range": [0, 3]},
            r"active_expert_range must be \[0, 5\] with drop_pad_mode 1, got \[0, 3\]",
        ),
        (
            {"drop_pad_mode": 1, "expert_capacity": 2, "expert_tokens_num_flag": True},
            "expert_tokens_num_type must be 1 with drop_pad_mode 1, got 0",
        ),
        ({"drop_pad_mode": 1, "expert_capacity": 2, "row_idx_type": 1}, "row_idx_type must be 0 with drop_pad_mode 1"),
    ],
)
def test_errors(keywords, message):
    with pytest.raises(ValueError, match=f"npu_moe_init_routing_v2: {message}"):
        operator(X, IDX, **{"expert_num": 5, **keywords})


@pytest.mark.parametrize(
    ("x", "expert_idx", "message"),
    [
        (X[0], IDX, r"x must be of shape \[N, H\]"),
        (X.double(), IDX, "x must be of dtype .*, got torch.float64"),
        (X, IDX.long(), "expert_idx must be of dtype torch.int32, got torch.int64"),
        (X, IDX[0], r"expert_idx must be of shape \[N, K\]"),
        (X, IDX[:2], "expert_idx must be of first size 4, that of x, got shape"),
    ],
)
def test_errors_of_tensors(x, expert_idx, message):
    with pytest.raises(ValueError, match=message):
        operator(x, expert_idx, expert_num=5)


def test_int8_is_not_quantized_again():
    with pytest.raises(ValueError, match="x must be of dtype .*, got torch.int8"):
        operator(X.char(), IDX, expert_num=5, quant_mode=1)


@pytest.mark.parametrize("options", [{}, {"active_expert_range": [1, 3]}, {"drop_pad_mode": 1, "expert_capacity": 2}])
def test_gradients(options):
    expert_idx = torch.tensor([[0, 2], [2, 1], [2, 0]], dtype=torch.int32)
    x, scale = torch.randn(3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    calls = {"expert_num": 3, "expert_tokens_num_type": 1, "scale": scale, **options}
    expanded, index, _, expanded_scale = operator(x, expert_idx, **calls)
    weight = torch.randn_like(expanded)
    loss = (expanded * weight).sum() + (expanded_scale * torch.arange(len(expanded_scale))).sum()
    found = torch.autograd.grad(loss, (x, scale))
    rows = index.view(3, 2)  # where each token's copies went; -1: nowhere
    flat = torch.cat([weight.view(-1, 4), torch.zeros(1, 4)])
    places = torch.cat([torch.arange(len(expanded_scale)), torch.zeros(1, dtype=torch.int64)])
    torch.testing.assert_close(found[0], flat[rows].sum(1))
    torch.testing.assert_close(found[1], places[rows].sum(1).float())
