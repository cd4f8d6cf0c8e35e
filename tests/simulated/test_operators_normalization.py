"""RMS norms, alone and fused, against float64 loops over rows from their documents."""

import pytest
import torch
import torch_npu
from test_operators_position import ONE_ROUNDING, random

from everywhere import check
from versions import need_operator, need_torch


def rms(x: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm, rstd [..., 1]) by rows, float64."""
    rows = x.double().reshape(-1, x.shape[-1])
    out, rstd = torch.empty_like(rows), torch.empty(len(rows), 1, dtype=torch.float64)
    for i, row in enumerate(rows):
        rstd[i] = (float((row * row).sum()) / len(row) + epsilon) ** -0.5
        out[i] = row * rstd[i] * gamma.double()
    return out.view(x.shape), rstd.view(*x.shape[:-1], 1)


X1, X2, GAMMA = random(2, 3, 16), random(2, 3, 16, seed=1), random(16)
TOTAL = X1 + X2
NORM, RSTD = rms(TOTAL, GAMMA)


def test_add_rms_norm():
    check(torch_npu.npu_add_rms_norm, [X1, X2, GAMMA], [NORM.bfloat16(), RSTD.float(), TOTAL], **ONE_ROUNDING)


def test_add_rms_norm_cast():
    expected = [NORM.bfloat16().float(), NORM.bfloat16(), RSTD.float(), TOTAL]
    check(torch_npu.npu_add_rms_norm_cast, [X1, X2, GAMMA], expected, **ONE_ROUNDING)
    wide, y, _, _ = torch_npu.npu_add_rms_norm_cast(X1.npu(), X2.npu(), GAMMA.npu())
    assert torch.equal(wide, y.float())  # torchair puts it in place of a norm and a cast


def test_add_rms_norm_v2_writes_to_its_arguments():
    expected = [RSTD.float(), NORM.bfloat16(), TOTAL, GAMMA]
    check(torch_npu.npu_add_rms_norm_v2, [X1, X2, GAMMA], expected, **ONE_ROUNDING)


def test_add_rms_norm_v2_in_copies():
    expected = [RSTD.float(), NORM.bfloat16(), TOTAL, X1, X2, GAMMA]
    check(torch.ops.npu.npu_add_rms_norm_v2_functional, [X1, X2, GAMMA], expected, **ONE_ROUNDING)


def test_gemma_rms_norm():
    norm, rstd = rms(X1, GAMMA.double() + 1)
    check(torch_npu.npu_gemma_rms_norm, [X1, GAMMA], [norm.bfloat16(), rstd.float()], modes=("eager",), **ONE_ROUNDING)


def test_rms_norm():
    norm, rstd = rms(X1, GAMMA)
    check(torch_npu.npu_rms_norm, [X1, GAMMA], [norm.bfloat16(), rstd.float()], **ONE_ROUNDING)


def rounded(values: torch.Tensor) -> torch.Tensor:
    return values.round().clamp(-128, 127).to(torch.int8)


@pytest.mark.parametrize("div_mode", [True, False])
def test_static_quantisation_behind_a_norm(div_mode):
    need_operator("npu_rms_norm_quant_v2")
    scale, offset = torch.rand(16) + 0.5, torch.randint(-3, 3, (16,)).float()

    def quantised(norm, scale, offset):
        return rounded((norm / scale.double() if div_mode else norm * scale.double()) + offset.double())

    norm, rstd = rms(X1, GAMMA)
    if div_mode:
        expected = quantised(norm + 0.5, scale, offset)
        beta = torch.full((16,), 0.5).bfloat16()
        check(torch_npu.npu_rms_norm_quant, [X1, GAMMA, beta, scale, offset], [expected], modes=("eager",), atol=1.0)
    check(
        torch_npu.npu_rms_norm_quant_v2,
        [X1, GAMMA, scale],
        [quantised(norm, scale, offset), rstd.float()],
        dict(offset=offset, div_mode=div_mode),
        modes=("eager",),
        atol=1.0,
    )
    zero_points = offset.to(torch.int32)
    check(
        torch_npu.npu_add_rms_norm_quant,
        [X1, X2, GAMMA, scale, zero_points, None, scale * 2, zero_points],
        [quantised(NORM, scale, offset), quantised(NORM, scale * 2, offset), TOTAL],
        dict(div_mode=div_mode),
        modes=("eager",),
        atol=1.0,
    )


def dynamic(norm: torch.Tensor, smooth: torch.Tensor | float, largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    smoothed = norm * smooth
    scale = smoothed.abs().amax(-1) / largest
    return (smoothed / scale.unsqueeze(-1)).round(), scale


@pytest.mark.parametrize("mask", [None, [True, True], [True, False]])
@pytest.mark.parametrize("smooths", [0, 1, 2])
def test_dynamic_quantisation_behind_a_norm(smooths, mask):
    if mask is None:
        need_torch(2, 13)  # that of 2.8 must be a list
    given = [torch.rand(16).bfloat16() + 0.5 for _ in range(smooths)] + [None] * (2 - smooths)
    wanted = mask or [True, smooths == 2]
    results = [dynamic(NORM, 1.0 if smooth is None else smooth.double(), 127) for smooth in given]
    nothing = torch.empty(0, dtype=torch.int8), torch.empty(0)
    (y1, s1), (y2, s2) = ((y.to(torch.int8), s.float()) if use else nothing for (y, s), use in zip(results, wanted))
    options = dict(smooth_scale1=given[0], smooth_scale2=given[1], output_mask=mask)
    modes = ("eager", "static") if all(wanted) else ("eager",)
    check(
        torch_npu.npu_add_rms_norm_dynamic_quant,
        [X1, X2, GAMMA],
        [y1, y2, TOTAL, s1, s2],
        options,
        modes=modes,
        atol=1.0,
    )


def test_dynamic_quantisation_to_int4_is_packed():
    need_torch(2, 13)  # in 2.8 y_dtype is a ScalarType, which int4 is not
    y, scale = dynamic(NORM, 1.0, 7)
    found = torch_npu.npu_add_rms_norm_dynamic_quant(
        X1.npu(), X2.npu(), GAMMA.npu(), output_mask=[True, False], y_dtype=torch_npu.int4
    )
    words = found[0].cpu()
    assert words.dtype == torch.int32 and words.shape == (2, 3, 2)
    nibbles = torch.stack([(words >> 4 * i) & 15 for i in range(8)], -1).flatten(-2)
    values = torch.where(nibbles > 7, nibbles - 16, nibbles)
    torch.testing.assert_close(values.double(), y, rtol=0, atol=1)
    torch.testing.assert_close(found[3].cpu(), scale.float(), **ONE_ROUNDING)


def test_a_type_without_a_reference_names_its_argument():
    with pytest.raises(NotImplementedError, match="y_dtype must be int8"):
        torch_npu.npu_add_rms_norm_dynamic_quant(X1.npu(), X2.npu(), GAMMA.npu(), y_dtype=torch_npu.hifloat8)


def test_what_torchairs_passes_make_of_a_norm_and_a_cast():
    """add_rms_norm and a cast to float32 become AddRmsNormCast; the program's numbers stay."""

    def norm_and_cast(x1, x2, gamma):
        y, _, total = torch_npu.npu_add_rms_norm(x1, x2, gamma)
        return y.float(), y, total

    expected = [NORM.bfloat16().float(), NORM.bfloat16(), TOTAL]
    check(norm_and_cast, [X1, X2, GAMMA], expected, modes=("static",), **ONE_ROUNDING)


def test_what_torchairs_passes_make_of_a_norm_and_a_quantisation():
    def norm_and_quant(x1, x2, gamma):
        y, _, total = torch_npu.npu_add_rms_norm(x1, x2, gamma)
        quantised, scale = torch_npu.npu_dynamic_quant(y.flatten(0, 1))
        return quantised, scale, total

    y, scale = dynamic(NORM.flatten(0, 1), 1.0, 127)
    expected = [y.to(torch.int8), scale.float(), TOTAL]
    check(norm_and_quant, [X1, X2, GAMMA], expected, modes=("static",), atol=1.0)
