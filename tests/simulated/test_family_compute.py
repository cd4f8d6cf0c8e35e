"""The compute operators in graph mode: torchair's own converters, executed by the engine, equal the fallback on the CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch_npu
import torchair

from family.grouped_matmul import random
from moe_graph import testing
from moe_graph.testing import Sample

HALVES = [torch.float16, torch.bfloat16]
each_mode = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])


def assert_lowers(function, inputs, dynamic, more_inputs=(), **nodes):
    lowered = testing.lower(function, *inputs, more_inputs=more_inputs if dynamic else (), dynamic=dynamic)
    testing.assert_one_graph(lowered)
    testing.assert_nodes(lowered.graph, **nodes)
    testing.assert_equals_eager(lowered)
    return lowered


def rows(count, dtype, seed=0):
    return random((count, 16), dtype, seed), random((3, 16, 8), dtype, seed + 1), torch.tensor([2, 2, count])


def grouped_rows(dtype, with_bias, count):
    x, weight, listed = rows(count, dtype)
    bias = [random((3, 8), torch.float16 if dtype == torch.float16 else torch.float32, 5)] if with_bias else None
    return Sample(([x], [weight]), {"bias": bias, "group_list": listed, "group_type": 0, "split_item": 3})


def grouped_int8(dtype, act_type, count):
    x, weight, listed = rows(count, torch.int8)
    scale, tokens = random((3, 8), torch.float32, 3).abs() / 999, random((count,), torch.float32, 4)
    scales = {} if dtype == torch.int32 else {"scale": [scale], "per_token_scale": [tokens], "act_type": act_type}
    return Sample(
        ([x], [weight]), {"group_list": listed, "group_type": 0, "split_item": 2, "output_dtype": dtype, **scales}
    )


def grouped_columns(kind, count):
    sizes = torch.tensor([2, 0, 4] if kind == 1 else [[2, 2], [0, 4], [1, 0]])
    x, weight = random((4, 6), torch.float16, 0), random((6, count), torch.float16, 1)
    return Sample(([x], [weight]), {"group_list": sizes, "group_type": 2, "split_item": 3, "group_list_type": kind})


def separate(count):
    shapes = [(count, 4), (2 * count, 6), (4, 5), (6, 5), (5,), (5,)]
    a, b, first, second, *bias = (random(shape, torch.float16, seed) for seed, shape in enumerate(shapes))
    return Sample(([a, b], [first, second]), {"bias": bias, "group_type": -1})


def int8_weights(count):
    x, _, listed = rows(count, torch.bfloat16)
    scale, offset = random((3, 8), torch.bfloat16, 1) / 99, random((3, 8), torch.bfloat16, 2)
    given = {"antiquant_scale": [scale], "antiquant_offset": [offset]}
    return Sample(
        ([x], [random((3, 16, 8), torch.int8, 3)]), {**given, "group_list": listed, "group_type": 0, "split_item": 3}
    )


def integers(split_item, several, columns):
    x, *weights = (random(shape, torch.float16, i) for i, shape in enumerate([(6, 4), (4, columns), (4, columns)]))
    return Sample(
        (list(x.split([2, 4])) if several else [x], weights), {"group_list": [2, 6], "split_item": split_item}
    )


def columns_of_several_weights(count):
    x, *weights = (
        random(shape, torch.float16, i) for i, shape in enumerate([(4, 3 * count), (count, 5), (count + 1, 5)])
    )
    return Sample((([x], weights)), {"group_type": 2, "split_item": 0})


GROUPED = {
    "rows": ("default", [partial(grouped_rows, *form) for form in zip((*HALVES, torch.float32), (True, False, True))]),
    "int8": ("default", [partial(grouped_int8, *form) for form in zip((*HALVES, torch.int32), (0, 5, 0))]),
    "columns": ("default", [partial(grouped_columns, kind) for kind in (1, 2)]),
    "others": ("default", [separate, columns_of_several_weights, int8_weights]),
    "group_list of integers": (
        "List",
        [partial(integers, *form) for form in ((0, False), (1, True), (2, True), (3, False))],
    ),
}


@pytest.mark.parametrize("overload, forms", GROUPED.values(), ids=GROUPED)
def test_grouped_matmul(overload, forms, lowered):
    samples = [form(count) for form in forms for count in (6, 9)]
    operator = getattr(torch.ops.npu.npu_grouped_matmul, overload)
    report = testing.check_converter(operator, samples, opcheck=False, captured=False)
    assert not [fault for fault in report.faults if "no sample gives" not in fault.fault], report
    assert all(program.node_types.count("GroupedMatmul") == 1 for program in lowered)


@each_mode
def test_grouped_matmul_trains(dynamic):
    """Forward and backward are lowered, and give eager's gradients."""
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())

    def loss(x, weight, listed):
        return (
            torch_npu.npu_grouped_matmul([x], [weight], group_list=listed, group_type=0, split_item=3)[0].square().sum()
        )

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend=backend, dynamic=dynamic, fullgraph=True)
    for count in (6, 9):
        x, weight, listed = rows(count, torch.float32)
        x, weight = x.requires_grad_(), weight.requires_grad_()
        expected = torch.autograd.grad(loss(x, weight, listed), (x, weight))
        on_npu = [tensor.detach().npu().requires_grad_() for tensor in (x, weight)]
        found = torch.autograd.grad(compiled(*on_npu, listed.npu()), on_npu)
        torch.testing.assert_close([grad.cpu() for grad in found], list(expected))


@each_mode
@pytest.mark.parametrize(("dtype", "dim"), zip([*HALVES, torch.float32], [-1, 0, -1]))
def test_swiglu(dynamic, dtype, dim):
    more = [(random((10, 16), dtype, 1),), (random((20, 16), dtype, 2),)]
    assert_lowers(lambda x: torch_npu.npu_swiglu(x, dim), (random((6, 16), dtype, 0),), dynamic, more, SwiGlu=1)


@each_mode
def test_swiglu_backward(dynamic):
    inputs = random((6, 8), torch.float16, 0), random((6, 16), torch.float16, 1)
    more = [(random((9, 8), torch.float16, 0), random((9, 16), torch.float16, 1))]
    assert_lowers(lambda grad, x: torch_npu.npu_swiglu_backward(grad, x), inputs, dynamic, more, SwiGluGrad=1)


@each_mode
@pytest.mark.parametrize("mode", ["pertoken", "pertensor", "perchannel"])
def test_dynamic_quant(dynamic, mode):
    nodes = {"DynamicQuant": 1} if mode == "pertoken" else {"DynamicQuantV2": 1}
    more = [(random((5, 12, 16), torch.float16, 1),)]
    inputs = (random((3, 7, 16), torch.float16, 0),)
    assert_lowers(lambda x: torch_npu.npu_dynamic_quant(x, quant_mode=mode), inputs, dynamic, more, **nodes)


@each_mode
def test_dynamic_quant_of_groups(dynamic):
    def function(x, smooth, group_index):
        return torch_npu.npu_dynamic_quant(x, smooth_scales=smooth, group_index=group_index)

    def inputs(count):
        ends = torch.tensor([2, 2, count], dtype=torch.int32)
        return random((count, 16), torch.bfloat16, 0), random((3, 16), torch.bfloat16, 1), ends

    assert_lowers(function, inputs(6), dynamic, [inputs(9)], DynamicQuant=1)


@each_mode
@pytest.mark.parametrize("swiglu_mode", [0, 1])
def test_dequant_swiglu_quant_of_groups(dynamic, swiglu_mode):
    def function(x, weight, tokens, smooth, group_index):
        return torch_npu.npu_dequant_swiglu_quant(
            x,
            weight_scale=weight,
            activation_scale=tokens,
            quant_scale=smooth,
            group_index=group_index,
            activate_left=True,
            quant_mode=1,
            swiglu_mode=swiglu_mode,
        )

    def inputs(count):
        x, tokens = random((count, 16), torch.int32, 0), random((count,), torch.float32, 1)
        weight, smooth = random((3, 16), torch.float32, 2), random((3, 8), torch.float32, 3)
        return x, weight, tokens, smooth, torch.tensor([2, 0, count - 2])

    assert_lowers(function, inputs(6), dynamic, [inputs(9)], DequantSwigluQuant=1)


@each_mode
def test_dequant_swiglu_quant_static(dynamic):
    def function(x, scale, offset):
        return torch_npu.npu_dequant_swiglu_quant(x, quant_scale=scale, quant_offset=offset, quant_mode=0)

    inputs = random((6, 16), torch.bfloat16, 0), random((1,), torch.float32, 1).abs(), random((1,), torch.float32, 2)
    assert_lowers(function, inputs, dynamic, DequantSwigluQuant=1)
