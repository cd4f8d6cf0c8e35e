"""torch_npu's own operators of normalization, rotary embedding and activation: against torch's compositions, with gradients."""

import pytest
import torch
import torch_npu
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from everywhere import check

GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(2, 3, 4, 8, generator=GENERATOR) for _ in range(2))
GAMMA, WEIGHT = torch.rand(8, generator=GENERATOR) + 0.5, torch.randn(5, 8, generator=GENERATOR)
ANGLES = torch.rand(1, 3, 1, 4, generator=GENERATOR)


def rotary(x, angles, interleaved):
    """Pairs as complex numbers, turned."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)
    )
    return turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)


def tables(angles, interleaved):
    wide = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles, angles], -1)
    return wide.cos(), wide.sin()


CASES = {
    "npu_rms_norm": (
        lambda x, g: torch_npu.npu_rms_norm(x, g, 1e-5)[0],
        lambda x, g: F.rms_norm(x, (8,), g, 1e-5),
        (X, GAMMA),
    ),
    "npu_rotary_mul half": (
        lambda x: torch_npu.npu_rotary_mul(x, *(t.npu() for t in tables(ANGLES, False))),
        lambda x: rotary(x, ANGLES, False),
        (X,),
    ),
    "npu_rotary_mul interleave": (
        lambda x: torch_npu.npu_rotary_mul(x, *(t.npu() for t in tables(ANGLES, True)), "interleave"),
        lambda x: rotary(x, ANGLES, True),
        (X,),
    ),
    "npu_gelu": (lambda x: torch_npu.npu_gelu(x, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh"), (X,)),
    "npu_silu": (torch_npu.npu_silu, F.silu, (X,)),
    "npu_linear": (torch_npu.npu_linear, F.linear, (X.view(-1, 8), WEIGHT)),
    "fast_gelu": (torch_npu.fast_gelu, lambda x: x * torch.sigmoid(1.702 * x), (X,)),
    "npu_fast_gelu": (torch_npu.npu_fast_gelu, lambda x: x * torch.sigmoid(1.702 * x), (X,)),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients(name):
    on_device, composed, data = CASES[name]
    found = []
    for device, function in (("cpu", composed), ("npu", on_device)):
        leaves = [x.clone().to(device).requires_grad_() for x in data]
        result = function(*leaves)
        result.square().sum().backward()
        found.append([result, *(leaf.grad for leaf in leaves)])
    for cpu, npu in zip(*found):
        assert npu.is_npu
        torch.testing.assert_close(npu.cpu(), cpu, rtol=1e-4, atol=1e-5)


CASTS = {  # the operator, what else it takes, and the result's dtype
    "_npu_dtype_cast": ((torch.float16,), torch.float16),
    "_npu_dtype_cast_backward": ((torch.bfloat16,), torch.bfloat16),
    "npu_dtype_cast_backward": ((torch.int32,), torch.int32),
}


@pytest.mark.parametrize("name", CASTS)
def test_casts(name):
    operator, (options, dtype) = getattr(torch.ops.npu, name), CASTS[name]
    x = X[0] * 100
    made = x.numpy().astype({torch.int32: "int32"}.get(dtype, "float32"))  # toward zero, as NumPy
    expected = torch.from_numpy(made).to(dtype)
    modes = ("eager",) if name == "_npu_dtype_cast_backward" else ("eager", "static", "dynamic")
    check(lambda x: operator(x, *options), [x], [expected], modes=modes)
    with FakeTensorMode():
        promised = operator(torch.empty(2, 3, device="npu"), *options)
    assert promised.dtype == dtype and promised.shape == (2, 3)


def test_casts_and_fills_in_place():
    x = torch.zeros(2, 3, dtype=torch.int8).npu()
    assert torch.ops.npu.npu_dtype_cast_(x, torch.tensor([[1.7, -2.3, 4.0]] * 2).npu()) is x
    assert x.cpu().tolist() == [[1, -2, 4]] * 2
    assert torch_npu.one_(x) is x and x.cpu().tolist() == [[1, 1, 1]] * 2
    half = torch.zeros(3).half().npu()[::2]
    assert torch_npu.one_(half).cpu().tolist() == [1, 1]


def test_overflow_is_found_in_the_gradients():
    """Of what has been computed the host keeps no status, so that it says that nothing overflowed."""
    good, bad = torch.ones(3).npu(), torch.tensor([1.0, float("inf")]).half().npu()
    check_all = torch.ops.npu._amp_foreach_non_finite_check
    assert [check_all(grads) for grads in ([good], [good, bad], [good * float("nan")])] == [False, True, True]
    status = torch_npu.npu_alloc_float_status(good)
    for found in (status, torch_npu.npu_get_float_status(status), torch_npu.npu_clear_float_status(status)):
        assert found.dtype == torch.float32 and found.cpu().tolist() == [0] * 8


def test_rms_norm_gives_the_reciprocal_root_too():
    y, rstd, total = torch_npu.npu_add_rms_norm(X.npu(), Y.npu(), GAMMA.npu(), 1e-5)
    expected = ((X + Y).square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    torch.testing.assert_close(rstd.cpu(), expected)
    torch.testing.assert_close(total.cpu(), X + Y)
    torch.testing.assert_close(y.cpu(), (X + Y) * expected * GAMMA)


def test_bfloat16_keeps_its_dtype():
    assert torch_npu.npu_rms_norm(X.bfloat16().npu(), GAMMA.bfloat16().npu())[0].dtype == torch.bfloat16
    assert torch_npu.npu_rotary_mul(*(X.bfloat16().npu(),) * 3).dtype == torch.bfloat16


def test_a_mode_that_is_not_modelled_is_refused():
    with pytest.raises(
        ValueError, match="rotary_mode must be one of half, interleave, quarter, interleave-half, got .third."
    ):
        torch.ops.npu.npu_rotary_mul(X.npu(), X.npu(), X.npu(), "third")


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4, 5)])
def test_batch_norm_reduce(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = [[sum(f(float(v)) for v in x[:, c].flatten()) for c in range(2)] for f in (lambda v: v, lambda v: v * v)]
    check(torch_npu.batch_norm_reduce, [x, 1e-5], list(torch.tensor(expected)), modes=("eager",), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="batch_norm_reduce: input must be of shape .N, C, ...., got shape .3,."):
        torch_npu.batch_norm_reduce(torch.ones(3).npu(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sums_of_synchronized_batch_norm(dtype):
    """batch_norm_gather_stats_update takes sums and sums of squares, whatever its schema calls them (ops-nn's document)."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5).to(dtype)
    total, squares = (torch.stack([h.sum((0, 2)) for h in part.float().split(1)]) for part in (x, x.float().square()))
    running_mean, running_var = torch.full((3,), 2.0, dtype=dtype), torch.full((3,), 3.0, dtype=dtype)
    found = torch_npu.batch_norm_gather_stats_update(
        x.npu(),
        total.to(dtype).npu(),
        squares.to(dtype).npu(),
        moved_mean := running_mean.npu(),
        moved_var := running_var.npu(),
        0.25,
        1e-3,
        torch.full((4,), 5).npu(),
    )
    flat = x.double().transpose(0, 1).reshape(3, -1).numpy()
    mean, variance = flat.mean(1), flat.var(1)
    expected = [mean, (variance + 1e-3) ** -0.5, 0.75 * 2 + 0.25 * mean, 0.75 * 3 + 0.25 * flat.var(1, ddof=1)]
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3  # the sums themselves are rounded to half
    for value, wanted in zip([*found, moved_mean, moved_var], expected):
        assert value.dtype == dtype
        torch.testing.assert_close(value.cpu().double(), torch.from_numpy(wanted), rtol=tolerance, atol=tolerance)
