"""npu_format_cast: values stay, the format shows in get_npu_format and in the size of the memory."""

import os
import subprocess
import sys

import pytest
import torch
import torch_npu
import torchair

ND, NCHW, NC1HWC0, FRACTAL_Z, NZ = 2, 0, 3, 4, 29


@pytest.fixture(autouse=True)
def internal_formats():
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def rounded(size: int, to: int) -> int:
    return -(-size // to) * to


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.float32, torch.int32])
@pytest.mark.parametrize("shape", [(64, 32), (40, 50), (3, 17, 33)])
def test_nz_keeps_values_and_pads_memory(shape, dtype):
    x = torch.randint(-9, 9, shape).to(dtype)
    cast = torch_npu.npu_format_cast(x.npu(), NZ)
    assert int(torch_npu.get_npu_format(cast)) == NZ and cast.shape == x.shape
    assert torch.equal(cast.cpu(), x)
    # Fractals of 16 rows and 32 bytes; wide elements have the columns of half ones, as torch_npu asks for.
    columns = 32 // min(x.element_size(), 2)
    expected = x[..., 0, 0].numel() * rounded(shape[-2], 16) * rounded(shape[-1], columns) * x.element_size()
    assert cast.untyped_storage().nbytes() == expected


@pytest.mark.parametrize("acl_format", [NC1HWC0, FRACTAL_Z])
def test_formats_of_images(acl_format):
    x = torch.randn(2, 3, 5, 7, dtype=torch.float16)
    cast = torch_npu.npu_format_cast(x.npu(), acl_format)
    assert int(torch_npu.get_npu_format(cast)) == acl_format
    assert torch.equal(cast.cpu(), x)
    back = torch_npu.npu_format_cast(cast, NCHW)
    assert int(torch_npu.get_npu_format(back)) == NCHW and torch.equal(back.cpu(), x)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6)])
@pytest.mark.parametrize("acl_format", [30, 32, 33])
def test_formats_of_volumes(acl_format, shape):
    x = torch.randn(shape, dtype=torch.float16)
    cast = torch_npu.npu_format_cast(x.npu(), acl_format)
    assert int(torch_npu.get_npu_format(cast)) == acl_format
    assert torch.equal(cast.cpu(), x)


def test_in_place_and_like_another_tensor():
    x = torch.randn(32, 64, dtype=torch.float16)
    changed, other = x.npu(), torch_npu.npu_format_cast(x.npu(), NZ)
    torch_npu.npu_format_cast_(changed, NZ)
    assert int(torch_npu.get_npu_format(changed)) == NZ and torch.equal(changed.cpu(), x)
    like = torch_npu.npu_format_cast(x.npu(), other)
    assert int(torch_npu.get_npu_format(like)) == NZ and torch.equal(like.cpu(), x)
    private = torch.ops.npu._npu_format_cast(x.npu(), NZ)
    assert int(torch_npu.get_npu_format(private)) == NZ and torch.equal(private.cpu(), x)


def test_operators_see_the_values():
    weight, x = torch.randn(64, 32).bfloat16(), torch.randn(4, 64).bfloat16()
    cast = torch_npu.npu_format_cast(weight.npu(), NZ)
    assert torch.equal((x.npu() @ cast).cpu(), (x.npu() @ weight.npu()).cpu())
    assert torch.equal(cast.t().contiguous().cpu(), weight.t())
    assert torch.equal((cast + 1).cpu(), weight + 1)
    parameter = torch.nn.Parameter(cast, requires_grad=False)
    assert int(torch_npu.get_npu_format(parameter)) == NZ


@pytest.mark.parametrize("dynamic", [False, True])
def test_weights_in_nz_in_a_graph(dynamic):
    weight, x = torch.randn(64, 32).bfloat16(), torch.randn(4, 64).bfloat16()
    cast = torch_npu.npu_format_cast(weight.npu(), NZ)
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: a @ b + 1, backend=backend, dynamic=dynamic)
    assert torch.equal(compiled(x.npu(), cast).cpu(), (x.npu() @ weight.npu() + 1).cpu())


def test_without_internal_formats_the_base_format_stays():
    torch.npu.config.allow_internal_format = False
    x = torch.randn(8, 8, dtype=torch.float16)
    cast = torch_npu.npu_format_cast(x.npu(), NZ)
    assert int(torch_npu.get_npu_format(cast)) == ND and torch.equal(cast.cpu(), x)


WORKER = """
import torch, torch_npu
torch.npu.config.allow_internal_format = True
x = torch.randn(40, 50).half()
cast = torch_npu.npu_format_cast(x.npu(), 29)
assert int(torch_npu.get_npu_format(cast)) == 29 and torch.equal(cast.cpu(), x)
assert cast.untyped_storage().nbytes() == 48 * 64 * 2
y = torch.randint(-9, 9, (64, 64), dtype=torch.int8)
other = torch_npu.npu_format_cast(y.npu(), 29, customize_dtype=torch.float16)
assert int(torch_npu.get_npu_format(other)) == 50 and torch.equal(other.cpu(), y)
back = torch_npu.npu_format_cast(cast, 2)
assert int(torch_npu.get_npu_format(back)) == 2 and torch.equal(back.cpu(), x)
assert torch.equal((cast + 1).cpu(), x + 1)
whole = torch.randint(-99, 99, (16, 16), dtype=torch.int32)
assert torch.equal(torch_npu.npu_format_cast(whole.npu(), 29).cpu(), whole)
for shape, form in (((2, 3, 5, 7), 3), ((40,), 29)):
    try:
        found = torch_npu.npu_format_cast(torch.zeros(shape).half().npu(), form)
        assert int(torch_npu.get_npu_format(found)) == 2, (shape, form)
    except RuntimeError as error:
        assert "dstFormat must be ND (2) or FRACTAL_NZ (29), got 3" in str(error) or "2 to 6 dimensions" in str(error), error
print("as on Ascend 950")
"""


@pytest.mark.slow
def test_by_aclnn_as_on_ascend_950():
    """torch_npu asks once for a process which way its product goes, so this one is of its own."""
    command = [sys.executable, "-c", "import moe_graph.simulator\n" + WORKER]
    child = subprocess.run(
        command,
        env={**os.environ, "MOE_GRAPH_SIM_SOC": "950"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.stdout.strip() == "as on Ascend 950", child.stderr[-2000:]
