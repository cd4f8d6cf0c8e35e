"""npu_format_cast of tensors without memory: the format and the bytes are those that torch_npu gives a tensor that has some."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch_npu
from torch._subclasses.fake_tensor import UnsupportedOperatorException

import moe_graph
from moe_graph.planning import fakes, formats
from moe_graph.planning.errors import PlanError

ND, NZ = 2, 29
SHAPES = [(64, 32), (40, 50), (1, 1), (17, 129), (3, 17, 33), (2, 3, 5, 7), (50,), (), (0, 8)]
DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.int32]


@pytest.fixture(autouse=True)
def internal_formats():
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def told(tensor):
    return int(torch_npu.get_npu_format(tensor)), torch_npu.get_storage_size(tensor), tensor.shape, tensor.dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cast_is_what_torch_npu_makes_of_it(dtype):
    for shape, customize in itertools.product(SHAPES, (None, torch.float16, torch.int8)):
        x = torch.zeros(shape, dtype=dtype)
        on_npu = torch_npu.npu_format_cast(x.npu(), NZ, customize_dtype=customize)
        wanted, back = told(on_npu), told(torch_npu.npu_format_cast(on_npu, ND))
        with formats.noted(), fakes.fake_mode():
            described = torch.empty(shape, dtype=dtype, device="npu")
            cast = torch_npu.npu_format_cast(described, NZ, customize_dtype=customize)
            assert told(cast) == wanted and cast.device == described.device, (shape, customize)
            assert told(torch_npu.npu_format_cast(cast, ND)) == back
            assert told(described) == told(x.npu())


class Product(torch.nn.Module):
    def __init__(self, weight, inside=False):
        super().__init__()
        self.weight, self.inside = torch.nn.Parameter(weight, requires_grad=False), inside

    def forward(self, x):
        return x @ (torch_npu.npu_format_cast(self.weight, NZ) if self.inside else self.weight)


def cast_data(model):
    model.weight.data = torch_npu.npu_format_cast(model.weight.data, NZ)


def cast_parameter(model):
    model.weight = torch.nn.Parameter(torch_npu.npu_format_cast(model.weight, NZ), requires_grad=False)


def cast_in_place(model):
    torch_npu.npu_format_cast_(model.weight, NZ)


@pytest.mark.parametrize(
    "cast", [cast_data, *(pytest.param(one, marks=pytest.mark.slow) for one in (cast_parameter, cast_in_place))]
)
def test_weights_in_nz_are_planned_with_their_padding(cast):
    real = Product(torch.zeros(40, 50, dtype=torch.bfloat16).npu())
    cast(real)
    with formats.noted(), fakes.fake_mode(), torch.device("npu"):
        described = Product(torch.empty(40, 50, dtype=torch.bfloat16))
        cast(described)
        x = torch.empty(8, 40, dtype=torch.bfloat16)
    for model in (described, real):
        plan = moe_graph.plan(model, x)
        assert plan.memory.parameters == real.weight.untyped_storage().nbytes() == 48 * 64 * 2
        assert {formats.of(value).number for value in plan.graph.ge_inputs} == {ND, NZ}
        layouts = {op.output_desc[0].attr["format_for_int"].i for op in plan.graph.definition.op if op.type == "Data"}
        assert layouts == {ND, NZ}


def test_a_cast_that_the_traced_function_holds_is_refused_as_torch_npu_refuses_it():
    with pytest.raises(torch._dynamo.exc.Unsupported, match="npu_format_cast"):
        moe_graph.plan(Product(torch.empty(40, 50, device="meta"), inside=True), torch.empty(8, 40, device="meta"))
    with fakes.fake_mode(), pytest.raises(UnsupportedOperatorException):  # outside of a plan nothing is changed
        torch_npu.npu_format_cast(torch.empty(40, 50, device="npu"), NZ)


def test_a_format_whose_size_is_not_known_is_an_error():
    with formats.noted(), fakes.fake_mode(), pytest.raises(PlanError, match="to format 3: the size"):
        torch_npu.npu_format_cast(torch.empty(64, 64, 224, 224, device="npu"), 3)
