"""Block quantization of Ascend 950: each operator against loops from its document, eager and in graph mode."""

import math

import pytest
import torch
import torch_npu

from everywhere import results, to_npu
from versions import need_argument, need_operator, need_torch

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E1M2 = [i / 4 for i in range(8)]
# Number -> magnitudes in the order of their codes, largest value, exponent of the largest value.
FLOAT4 = {296: (E2M1, 6, 2), 297: (E1M2, 1.75, 0)}
FLOAT8 = {291: (torch.float8_e5m2, 57344, 15), 292: (torch.float8_e4m3fn, 448, 8)}
FORMS = [*FLOAT4, *FLOAT8]


@pytest.fixture(autouse=True)
def ascend_950(product):
    product("950")


def magnitudes(number):
    if number in FLOAT4:
        return FLOAT4[number][0]
    values = torch.arange(128, dtype=torch.uint8).view(FLOAT8[number][0]).double()
    return values[values.isfinite()].tolist()


def code_of(value, number, mode="rint"):
    """The code of the nearest value of the type, by comparing with all of them."""
    known, size = magnitudes(number), abs(value)
    negative = math.copysign(1, value) < 0
    below = max(i for i, m in enumerate(known) if m <= size)
    if below + 1 == len(known) or known[below] == size:
        found = below
    elif mode == "floor":
        found = below + int(negative)
    else:
        middle = (known[below] + known[below + 1]) / 2
        up = size > middle or (size == middle and (mode == "round" or below % 2 == 1))
        found = below + int(up)
    return found | int(negative) << (3 if number in FLOAT4 else 7)


def scale_of(block, number, alg=0, maximum=0.0, bound=0.0):
    """Code of a block's scale, by the document's cases; the mantissa is read from the number's hexadecimal form."""
    largest = max([abs(v) for v in block] + [bound])
    if largest == 0:
        return 0
    top, emax = (FLOAT4 | FLOAT8)[number][1:]
    if alg == 0 or (alg == 2 and maximum in (0.0, 6.0, 7.0)):
        largest = torch.tensor(largest).bfloat16().item() if alg else largest
        exponent = math.floor(math.log2(largest))
        if alg == 2 and largest / 2**exponent > (1.75 if maximum == 7 else 1.5):
            exponent += 1
        return max(exponent - emax + 127, 0)
    quotient = (torch.tensor(largest) / torch.tensor(float(maximum or top))).item()
    return max(math.ceil(math.log2(quotient)) + 127, 0)


def quantized_line(line, number, mode="rint", alg=0, maximum=0.0, bound=0.0, size=32):
    """Codes of the elements and of the blocks of a list of numbers."""
    codes, scales = [], []
    for start in range(0, len(line), size):
        block = line[start : start + size]
        scales.append(scale_of(block, number, alg, maximum, bound))
        codes += [code_of(v / 2.0 ** (scales[-1] - 127), number, mode) for v in block]
    return codes, scales


def elements(codes, number):
    """A tensor of codes as torch_npu hands it over."""
    codes = codes.to(torch.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4 if number in FLOAT4 else codes.view(FLOAT8[number][0])


def expected_along(x, axis, number, **modes):
    """y and mxscale of npu_dynamic_mx_quant."""
    lines = x.double().movedim(axis, -1)
    flat = lines.reshape(-1, lines.shape[-1])
    results = [quantized_line(row.tolist(), number, **modes) for row in flat]
    y = torch.tensor([codes for codes, _ in results]).view(lines.shape).movedim(-1, axis)
    blocks = len(results[0][1])
    scales = torch.zeros(len(results), blocks + blocks % 2, dtype=torch.uint8)
    scales[:, :blocks] = torch.tensor([codes for _, codes in results], dtype=torch.uint8)
    pairs = scales.view(*lines.shape[:-1], -1, 2).movedim(-2, axis % x.dim())
    return elements(y, number), pairs.contiguous()


def spread(*shape, seed=0, dtype=torch.float16):
    """Values of many magnitudes, some halves between two steps among them, and a block of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-6, 7, shape, generator=generator)
    x = (x * 8).round() / 8  # exact in every dtype that is used
    x[..., :3, :] = 0 if x.dim() > 1 and shape[-2] > 3 else x[..., :3, :]
    return x.to(dtype)


def run(function, args, expected, modes=("eager", "static", "dynamic")):
    """Every mode gives `expected`, to the last bit. In graph mode scales come as float8_e8m0fnu: what has one byte is compared as bytes."""

    def plain(tensor):
        return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor

    for mode, found in results(function, args, modes=modes).items():
        for position, (value, wanted) in enumerate(zip(found, expected)):
            same = plain(value), plain(wanted)
            assert value.dtype == wanted.dtype or value.dtype == torch.float8_e8m0fnu, (mode, position, value.dtype)
            torch.testing.assert_close(*same, rtol=0, atol=0, msg=lambda text: f"{mode}, result {position}: {text}")  # noqa: B023


@pytest.mark.parametrize("number", FORMS)
@pytest.mark.parametrize("axis", [-1, 0])
def test_dynamic_mx_quant(number, axis):
    x = spread(40, 70, seed=number) if axis == 0 else spread(5, 70, seed=number, dtype=torch.bfloat16)
    modes = {296: ("eager", "dynamic"), 292: ("eager", "static")}.get(number, ("eager",))
    run(
        lambda x: torch_npu.npu_dynamic_mx_quant(x, axis=axis, dst_type=number),
        [x],
        expected_along(x, axis, number),
        modes,
    )


@pytest.mark.parametrize("mode", ["round", "floor"])
@pytest.mark.parametrize("number", FLOAT4)
def test_round_modes(number, mode):
    x = spread(3, 64, seed=1)
    run(
        lambda x: torch_npu.npu_dynamic_mx_quant(x, dst_type=number, round_mode=mode),
        [x],
        expected_along(x, -1, number, mode=mode),
        ("eager",),
    )


@pytest.mark.parametrize(
    "number, modes",
    [
        (291, dict(alg=1)),
        (292, dict(alg=1)),
        (292, dict(alg=1, bound=3.0)),
        (296, dict(alg=2)),
        (296, dict(alg=2, maximum=7.0)),
        (296, dict(alg=2, maximum=9.5)),
        (292, dict(size=96)),
    ],
)
def test_how_scales_are_found(number, modes):
    if "bound" in modes:
        need_argument(torch.ops.npu.npu_dynamic_mx_quant.default, "max_low_bound")
    x = spread(6, 100, seed=2)
    x[3, 0], x[4, 0], x[5, 0] = 448 * 2, 1.5 * 512, 1.75 * 512  # on the borders
    kwargs = {"alg": "scale_alg", "bound": "max_low_bound", "maximum": "dst_type_max", "size": "block_size"}
    given = {kwargs[name]: value for name, value in modes.items()}
    run(
        lambda x: torch_npu.npu_dynamic_mx_quant(x, dst_type=number, **given),
        [x],
        expected_along(x, -1, number, **modes),
        ("eager",),
    )


def test_infinity_and_extremes():
    x = torch.zeros(4, 32, dtype=torch.bfloat16)
    x[0, 3], x[1, 4], x[2, 5], x[3, 6] = torch.inf, torch.nan, 2.0**-133, torch.finfo(torch.bfloat16).max
    y, scale = torch_npu.npu_dynamic_mx_quant(x.npu(), dst_type=292)
    assert scale.cpu()[:, 0, 0].tolist() == [255, 255, 0, 127 + 127 - 8] and not scale.cpu()[..., 1].any()
    assert not y.cpu()[:2].float().any() and y.cpu()[2, 5] == 2.0**-6 and y.cpu()[3, 6] == 448


@pytest.mark.parametrize("number", [296, 291])
def test_dynamic_mx_quant_with_dual_axis(number):
    x = spread(2, 40, 38, seed=3)
    expected = [*expected_along(x, -1, number), *expected_along(x, -2, number)]
    run(
        lambda x: torch_npu.npu_dynamic_mx_quant_with_dual_axis(x, dst_type=number),
        [x],
        expected,
        ("eager", "static" if number == 296 else "dynamic"),
    )


@pytest.mark.parametrize("number, alg", [(297, 0), (292, 0), (296, 2)])
def test_dynamic_block_mx_quant(number, alg):
    x = spread(40, 70, seed=4)
    rows, columns = x.shape
    codes = torch.zeros(rows, columns, dtype=torch.long)
    first, second = torch.zeros(rows, 4, dtype=torch.uint8), torch.zeros(2, columns, dtype=torch.uint8)
    for top in range(0, rows, 32):
        for left in range(0, columns, 32):
            square = x[top : top + 32, left : left + 32].double()
            scale = scale_of(square.flatten().tolist(), number, alg)
            first[top : top + 32, left // 32] = scale
            second[top // 32, left : left + 32] = scale
            for i, row in enumerate(square.tolist()):
                for j, value in enumerate(row):
                    codes[top + i, left + j] = code_of(value / 2.0 ** (scale - 127), number)
    expected = [elements(codes, number), first.view(rows, 2, 2), second.view(1, 2, columns).movedim(1, -1)]
    run(
        lambda x: torch_npu.npu_dynamic_block_mx_quant(x, dst_type=number, scale_alg=alg),
        [x],
        expected,
        ("eager", "dynamic") if alg else ("eager", "static") if number == 292 else ("eager",),
    )


def expected_in_groups(x, ends, number, **modes):
    """y and mxscale of npu_grouped_dynamic_mx_quant; rows beyond the groups and places of no block are 0."""
    codes = torch.zeros(x.shape, dtype=torch.long)
    scale = torch.zeros(x.shape[0] // 64 + len(ends), x.shape[1], 2, dtype=torch.uint8)
    start = 0
    for group, end in enumerate(ends):
        for column in range(x.shape[1]):
            column_codes, scales = quantized_line(x[start:end, column].double().tolist(), number, **modes)
            codes[start:end, column] = torch.tensor(column_codes, dtype=torch.long)
            for block, code in enumerate(scales):
                scale[start // 64 + group + block // 2, column, block % 2] = code
        start = end
    return elements(codes, number), scale


@pytest.mark.parametrize("number", [291, 296])
def test_grouped_dynamic_mx_quant(number):
    if number == 296:
        need_torch(2, 13)  # the fake implementation of 2.8 knows no float4
    x, ends = spread(150, 6, seed=5), [20, 20, 130, 150]
    given = torch.tensor(ends, dtype=torch.int32)

    def quantized(x, ends):
        return torch_npu.npu_grouped_dynamic_mx_quant(x, ends, dst_type={291: torch.float8_e5m2}.get(number, number))

    run(quantized, [x, given], expected_in_groups(x, ends, number), ("eager", "dynamic" if number == 291 else "static"))
    with pytest.raises(RuntimeError, match="group_index must be non-decreasing and end with the 150 rows"):
        quantized(x.npu(), (given - 1).npu())


@pytest.mark.parametrize("number", FORMS)
@pytest.mark.parametrize("axis", [-1, 0])
def test_anti_mx_quant(number, axis):
    need_operator("npu_anti_mx_quant")
    x = spread(40, 70, seed=6)
    y, scale = torch_npu.npu_dynamic_mx_quant(x.npu(), axis=axis, dst_type=number)
    known = magnitudes(number)
    codes = y.cpu().view(torch.uint8).long()
    if number in FLOAT4:
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(1)
    half = 8 if number in FLOAT4 else 128
    expected = torch.empty(40, 70)
    for i in range(40):
        for j in range(70):
            block, (row, column) = divmod((i if axis == 0 else j) // 32, 2), (i, j)
            code = scale.cpu()[block[0], column, block[1]] if axis == 0 else scale.cpu()[row, block[0], block[1]]
            value = known[codes[i, j] % half] * (-1 if codes[i, j] >= half else 1)
            expected[i, j] = value * 2.0 ** (int(code) - 127)

    def restored(y, scale):
        return torch_npu.npu_anti_mx_quant(y, scale, axis=axis, dst_type=torch.float32, src_type=number)

    assert torch.equal(restored(y, scale).cpu(), expected)
    if axis == -1:
        run(restored, [y.cpu(), scale.cpu()], [expected], ("eager", "static" if number == 296 else "dynamic"))


@pytest.mark.parametrize("number", [296, 292])
def test_there_and_back_in_one_graph(number):
    """FX has uint8 for the scales and for float4; the nodes between know better."""
    need_operator("npu_anti_mx_quant")
    x = torch.tensor(magnitudes(number)[:8]).repeat(3, 8).bfloat16()

    def there_and_back(x):
        y, scale = torch_npu.npu_dynamic_mx_quant(x, dst_type=number)
        return torch_npu.npu_anti_mx_quant(y.clone(), scale.reshape(3, 1, 2).clone(), src_type=number)

    run(there_and_back, [x], [x], ("eager", "static"))


@pytest.mark.parametrize("smooth", [False, True])
def test_dynamic_dual_level_mx_quant(smooth):
    x = spread(4, 600, seed=7, dtype=torch.bfloat16)
    factors = torch.rand(600, generator=torch.Generator().manual_seed(1)).bfloat16() if smooth else None
    values = (x.float() * factors.float()).bfloat16() if smooth else x
    level0, between = torch.zeros(4, 2), torch.zeros(4, 600, dtype=torch.bfloat16)
    for i in range(4):
        for part in range(2):
            block = values[i, 512 * part : 512 * part + 512].float()
            level0[i, part] = block.abs().max() / 6
            if level0[i, part]:
                between[i, 512 * part : 512 * part + 512] = block / level0[i, part]
    y, level1 = expected_along(between, -1, 296)
    run(
        lambda x, s: torch_npu.npu_dynamic_dual_level_mx_quant(x, smooth_scale=s),
        [x, factors],
        [y, level0, level1],
        ("eager", "dynamic" if smooth else "static"),
    )


def norm_of(x, gamma, beta):
    """RmsNorm, rounded to x's dtype, and rstd; float64 inside."""
    wide = x.double()
    rstd = 1 / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    y = wide * rstd * gamma.double()
    return (y if beta is None else y + beta.double()).to(x.dtype), rstd.float()


@pytest.mark.parametrize("number, alg", [(296, 0), (292, 1)])
@pytest.mark.parametrize("added", [False, True])
def test_rms_norm_dynamic_mx_quant(number, alg, added):
    generator = torch.Generator().manual_seed(8)
    x1, x2 = (torch.randn(2, 3, 70, generator=generator).bfloat16() for _ in range(2))
    gamma, beta = torch.rand(70, generator=generator), torch.randn(70, generator=generator) if alg else None
    total = x1 + x2 if added else x1
    normed, rstd = norm_of(total, gamma, beta)
    y, scale = expected_along(normed, -1, number, alg=alg)

    def plain(x1, x2, gamma, beta):
        results = torch_npu.npu_rms_norm_dynamic_mx_quant(x1, gamma, beta=beta, dst_type=number, scale_alg=alg)
        return (*results[:2], results[2].mul(2**10).round())

    def sum_first(x1, x2, gamma, beta):
        y, total, scale, rstd = torch_npu.npu_add_rms_norm_dynamic_mx_quant(
            x1, x2, gamma, beta=beta, dst_type=number, scale_alg=alg
        )
        return y, scale, rstd.mul(2**10).round(), total

    expected = [y, scale, rstd.mul(2**10).round(), *([total] if added else [])]
    modes = ("eager", "static") if alg and added else ("eager", "dynamic") if alg == int(added) else ("eager",)
    run(sum_first if added else plain, [x1, x2, gamma, beta], expected, modes)


def silu(x):
    return x / (1 + torch.exp(-x))


@pytest.mark.parametrize("swiglu_mode, left, dim", [(0, False, -1), (0, True, -2), (1, False, -1)])
@pytest.mark.parametrize("axis", [-1, -2])
def test_swiglu_mx_quant(swiglu_mode, left, dim, axis):
    x = (torch.randn(40, 80, generator=torch.Generator().manual_seed(9)) * 4).bfloat16()
    if swiglu_mode:
        a, b = x[:, ::2].double().clamp(max=7), x[:, 1::2].double().clamp(-7, 7)
        values = a / (1 + torch.exp(-1.702 * a)) * (b + 1)
    else:
        first, second = x.double().chunk(2, dim)
        values = silu(first if left else second) * (second if left else first)
    expected = expected_along(values.bfloat16(), axis, 296)

    def quantized(x):
        return torch_npu.npu_swiglu_mx_quant(
            x, activate_dim=dim, activate_left=left, swiglu_mode=swiglu_mode, axis=axis, dst_type=296
        )

    modes = ("eager", "static") if swiglu_mode and axis == -1 else ("eager", "dynamic") if left else ("eager",)
    run(quantized, [x], expected, modes)


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("axis", [-1, -2])
def test_swiglu_mx_quant_in_groups(counts, axis):
    x = torch.randn(70, 12, generator=torch.Generator().manual_seed(10)).half()
    ends = [3, 50]
    values = (silu(x[:, 6:].double()) * x[:, :6].double()).half()
    values[50:] = 0
    y, scale = expected_along(values, -1, 292) if axis == -1 else expected_in_groups(values, ends, 292)
    given = torch.tensor([3, 47] if counts else ends)

    def quantized(x, groups):
        return torch_npu.npu_swiglu_mx_quant(x, group_index=groups, group_mode=int(not counts), axis=axis, dst_type=292)

    run(quantized, [x, given], [y, scale], ("eager", "dynamic") if counts and axis == -2 else ("eager",))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_swiglu_mx_quant_with_dual_axis(left, grouped, backward):
    need_operator("npu_swiglu_mx_quant_with_dual_axis")
    generator = torch.Generator().manual_seed(11)
    x, grad = torch.randn(70, 12, generator=generator).half(), torch.randn(70, 6, generator=generator).half()
    ends = [3, 70] if grouped else None
    wide = x.double().requires_grad_()
    first, second = wide.chunk(2, -1)
    out = silu(first if left else second) * (second if left else first)
    values = torch.autograd.grad(out, wide, grad.double())[0].half() if backward else out.detach().half()
    second = expected_in_groups(values, ends, 292, alg=1) if grouped else expected_along(values, 0, 292, alg=1)
    given = torch.tensor(ends) if grouped else None

    def quantized(x, grad, groups):
        if backward:
            call, args = torch_npu._npu_swiglu_backward_mx_quant_with_dual_axis, (x, grad)
        else:
            call, args = torch_npu.npu_swiglu_mx_quant_with_dual_axis, (x,)
        return call(*args, group_index=groups, activate_left=left, dst_type=292)

    run(quantized, [x, grad, given], [*expected_along(values, -1, 292, alg=1), *second], ("eager",))


CALLS = {
    "another product": ("A2", lambda x: torch_npu.npu_dynamic_mx_quant(x), "only Ascend 950 has it, the product is A2"),
    "type": (
        "950",
        lambda x: torch_npu.npu_dynamic_mx_quant(x, dst_type=1),
        "dst_type must be one of float4_e2m1, .*got torch.int8",
    ),
    "round mode": (
        "950",
        lambda x: torch_npu.npu_dynamic_mx_quant(x, dst_type=292, round_mode="floor"),
        "round_mode must be one of 'rint'",
    ),
    "algorithm": (
        "950",
        lambda x: torch_npu.npu_dynamic_mx_quant(x, dst_type=297, scale_alg=2),
        "scale_alg must be one of 0",
    ),
    "largest": (
        "950",
        lambda x: torch_npu.npu_dynamic_mx_quant(x, scale_alg=2, dst_type_max=5.0),
        "dst_type_max must be 0, or from 6 to 12",
    ),
    "rank": ("950", lambda x: torch_npu.npu_dynamic_block_mx_quant(x[0]), r"input must be of shape \[M, N\]"),
}


@pytest.mark.parametrize("case", CALLS)
def test_refusals(case, product):
    name, call, message = CALLS[case]
    product(name)
    with pytest.raises(RuntimeError, match=message):
        call(to_npu(spread(4, 64)))
