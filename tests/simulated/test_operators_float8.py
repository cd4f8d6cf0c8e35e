"""To float8 and hifloat8 (Ascend 950): each operator against loops from its document, eager and in graph mode."""

import math

import pytest
import torch
import torch_npu

from everywhere import check, to_npu
from moe_graph.foundation import compat
from versions import need_operator

LARGEST = {290: 32768.0, 291: 57344.0, 292: 448.0, torch.int8: 127.0}
CARRIER = {290: torch.uint8, 291: torch.float8_e5m2, 292: torch.float8_e4m3fn, torch.int8: torch.int8}


@pytest.fixture(autouse=True)
def ascend_950(product):
    product("950")


def hifloat8_value(code):
    """Bit by bit, from the type's description."""
    bits = f"{code:08b}"
    sign, rest = (-1 if bits[0] == "1" else 1), bits[1:]
    if code == 0x80:
        return math.nan
    if code & 0x7F == 0x6F:
        return sign * math.inf
    for prefix, size in (("11", 4), ("10", 3), ("01", 2), ("001", 1), ("0001", 0)):
        if rest.startswith(prefix):
            rest = rest[len(prefix) :]
            exponent, fraction = rest[:size], rest[size:]
            magnitude = int("1" + exponent[1:], 2) if size else 0
            magnitude = -magnitude if exponent[:1] == "1" else magnitude
            return sign * 2.0**magnitude * (1 + int(fraction, 2) / 2 ** len(fraction))
    return sign * 2.0 ** (code % 8 - 23) if code % 8 else 0.0


HIFLOAT8 = {code: hifloat8_value(code) for code in range(256)}
POSITIVE = sorted((value, code) for code, value in HIFLOAT8.items() if code < 0x80 and value < math.inf)


def hifloat8_code(value, saturate=True):
    """The nearest value's; of two as near the larger."""
    if math.isnan(value):
        return 0 if saturate else 0x80
    if not saturate and abs(value) >= 1.25 * 32768:
        return 0x6F | (value < 0) << 7
    _, code = min(POSITIVE, key=lambda pair: (abs(pair[0] - abs(value)), -pair[0]))
    return code | (value < 0) << 7 if code else 0


def rounded(values, number):
    """float32 values in a type of eight bits, cut to its range."""
    if number == 290:
        codes = [hifloat8_code(v) for v in values.flatten().tolist()]
        return torch.tensor(codes, dtype=torch.uint8).view(values.shape)
    top = LARGEST[number]
    if number == torch.int8:
        return values.round().clamp(-128, 127).to(torch.int8)
    return values.nan_to_num(0.0, top, -top).clamp(-top, top).to(CARRIER[number])


def run(function, args, expected, modes=("eager",), **tolerance):
    """Types of a byte are compared as bytes; torchair of 2.8 lowers no such view."""
    modes = modes if compat.TORCH >= (2, 13) else ("eager",)

    def call(*given):
        return tuple(r.view(torch.uint8) if r.dtype.itemsize == 1 else r for r in function(*given))

    check(call, args, [e.view(torch.uint8) if e.dtype.itemsize == 1 else e for e in expected], modes=modes, **tolerance)


def test_hifloat8():
    """All its values there and back, the middles between them and what lies outside."""
    codes = torch.arange(256, dtype=torch.uint8)
    values = torch_npu.npu_dtype_cast(codes.npu(), torch.float32, torch_npu.hifloat8).cpu()
    torch.testing.assert_close(values, torch.tensor(list(HIFLOAT8.values())), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch_npu.npu_dtype_cast(values.npu(), torch_npu.hifloat8).cpu(), codes)
    finite = torch.tensor([value for value, _ in POSITIVE])
    middles = (finite[1:] + finite[:-1]) / 2
    others = torch.tensor([40959.0, 40960.0, 1e30, -1e30, -1e-30, -0.0, 2.0**-24])
    x = torch.cat((middles, -middles, middles * (1 - 2**-20), others))
    expected = torch.tensor([hifloat8_code(v, saturate=False) for v in x.tolist()], dtype=torch.uint8)
    assert torch.equal(torch_npu.npu_dtype_cast(x.npu(), torch_npu.hifloat8).cpu(), expected)


@pytest.mark.parametrize("number", [290, 296, 297])
def test_dtype_cast_in_a_graph(number):
    x = torch.tensor([[0.2, 0.25, -1.0, 5.2], [3.0, -0.6, 9.0, 0.0]])
    known = {296: [0, 0.5, 1, 1.5, 2, 3, 4, 6], 297: [i / 4 for i in range(8)]}
    codes = torch.empty(2, 4, dtype=torch.uint8)
    for i, row in enumerate(x.tolist()):
        for j, v in enumerate(row):
            if number == 290:
                codes[i, j] = hifloat8_code(v, saturate=False)
            else:
                codes[i, j] = min(range(8), key=lambda c: (abs(known[number][c] - abs(v)), c % 2)) | (v < 0) << 3
    wanted = codes if number == 290 else codes[:, ::2] | codes[:, 1::2] << 4
    check(lambda x: torch_npu.npu_dtype_cast(x, number), [x], [wanted], modes=("eager", "static"))
    back = torch.tensor(
        [
            [HIFLOAT8[c] if number == 290 else known[number][c % 8] * (-1) ** (c // 8) for c in row]
            for row in codes.tolist()
        ]
    )
    check(
        lambda y: torch_npu.npu_dtype_cast(y, torch.float16, number),
        [wanted],
        [back.half()],
        modes=("eager", "dynamic"),
    )
    # The gradient's bytes are those of the forward call's result, and become what its argument was.
    backward = torch.ops.npu.npu_dtype_cast_backward
    check(lambda y: backward(y, torch.float16, number), [wanted], [back.half()], modes=("eager", "static"))
    check(lambda y: backward(y, torch.uint8, None, number), [x], [wanted], modes=("eager", "static"))


@pytest.mark.parametrize("number", [290, 291, 292])
@pytest.mark.parametrize("grouped", [False, True])
def test_quant_max(number, grouped):
    need_operator("npu_quant_max")
    x = torch.randn(9, 2, 6, generator=torch.Generator().manual_seed(1)).to(
        [torch.float32, torch.float16, torch.bfloat16][number - 290]
    )
    x[0, 0, :2] = torch.tensor([400.0, -500.0])
    ends = [3, 3, 9] if grouped else [9]
    scale = torch.tensor([0.5, 2.0, 300.0]) if grouped else torch.tensor([300.0])
    values, amax, start = torch.empty(9, 2, 6), torch.zeros(len(ends), dtype=x.dtype), 0
    for group, end in enumerate(ends):
        values[start:end] = x[start:end].float() * scale[group]
        amax[group] = max([abs(v) for v in x[start:end].flatten().tolist()], default=0)
        start = end
    mode = "round" if number == 290 else "rint"
    given = torch.tensor(ends) if grouped else None

    def quantized(x, scale, groups):
        return torch_npu.npu_quant_max(x, scale, round_mode=mode, dst_dtype=number, group_list=groups)

    modes = ("eager", "dynamic") if grouped == (number == 291) else ("eager",)
    run(quantized, [x, scale, given], [rounded(values, number), amax], modes)


def blocks_of(x, number, rows, columns, maximum=0.0, least=0.0):
    """y and scale of a matrix, block by block."""
    height, width = x.shape
    scale = torch.empty(-(-height // rows), -(-width // columns))
    values = torch.empty(x.shape)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            place = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            block = x[place].float()
            scale[i, j] = block.masked_fill(~block.isfinite(), 0).abs().max() / (maximum or LARGEST[number])
            if least:
                scale[i, j] = min(scale[i, j], torch.tensor(1 / least))
            divided = block / scale[i, j] if scale[i, j] else block * 0
            values[place] = torch.where(block.isfinite(), divided, block)
    return rounded(values, number), scale


@pytest.mark.parametrize(
    "number, rows, columns, maximum, least",
    [(torch.int8, 1, 128, 0.0, 0.0), (290, 1, 64, 15.0, 0.0), (291, 128, 128, 0.0, 30000.0), (292, 1, 192, 0.0, 0.0)],
)
def test_dynamic_block_quant(number, rows, columns, maximum, least):
    x = torch.randn(2, 130, 200, generator=torch.Generator().manual_seed(2)).half()
    x[0, 0], x[0, 1, 3], x[1, 1, 2] = 0, torch.inf, torch.nan
    if number in (290, torch.int8):
        x = x[:, :3].contiguous()
        x[1, 1, 2] = 0 if number == torch.int8 else x[1, 1, 2]
    parts = [blocks_of(matrix, number, rows, columns, maximum, least) for matrix in x]
    expected = [torch.stack([y for y, _ in parts]), torch.stack([scale for _, scale in parts])]

    def quantized(x):
        return torch_npu.npu_dynamic_block_quant(
            x, dst_type=number, row_block_size=rows, col_block_size=columns, dst_type_max=maximum, min_scale=least
        )

    modes = {291: ("eager", "static"), 292: ("eager", "dynamic")}.get(number, ("eager",))
    run(quantized, [x], expected, modes)


@pytest.mark.parametrize("number, rows", [(290, 1), (292, 128)])
def test_grouped_dynamic_block_quant(number, rows):
    x = torch.randn(150, 70, generator=torch.Generator().manual_seed(3)).bfloat16()
    x = x[:6].contiguous() if rows == 1 else x
    ends = [2, 2, 6] if rows == 1 else [20, 140, 150]
    y, scale, start = [], torch.zeros(x.shape[0] // rows + 3, 2), 0
    for group, end in enumerate(ends):
        if end > start:
            part, found = blocks_of(x[start:end], number, rows, 64)
            y.append(part)
            scale[start // rows + group :][: len(found)] = found
        start = end
    mode = "round" if number == 290 else "rint"

    def quantized(x, ends):
        return torch_npu.npu_grouped_dynamic_block_quant(
            x, ends, dst_type=number, row_block_size=rows, col_block_size=64, round_mode=mode
        )

    expected = [torch.cat([part.view(torch.uint8) for part in y]), scale]
    modes = ("eager", "static") if number == 292 else ("eager", "dynamic")
    run(quantized, [x, torch.tensor(ends, dtype=torch.int32)], expected, modes)


@pytest.mark.parametrize("number", [290, 291, 292])
def test_rms_norm_to_float8(number):
    need_operator("npu_rms_norm_quant_v2")
    generator = torch.Generator().manual_seed(4)
    x1, x2 = (torch.randn(3, 16, generator=generator) for _ in range(2))
    gamma, beta = torch.rand(16, generator=generator), torch.randn(16, generator=generator)
    scale, offset = torch.rand(16, generator=generator) + 0.1, torch.randn(16, generator=generator)

    def expected(x, divides):
        wide = x.double()
        normed = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gamma.double() + beta.double()
        return rounded(((normed / scale if divides else normed * scale) + offset).float(), number)

    run(
        lambda x: (torch_npu.npu_rms_norm_quant(x, *to_npu([gamma, beta, scale, offset]), 1e-6, dst_dtype=number),),
        [x1],
        [expected(x1, True)],
    )
    run(
        lambda x: torch_npu.npu_rms_norm_quant_v2(
            x, *to_npu([gamma, scale]), offset=offset.npu(), beta=beta.npu(), div_mode=False, dst_dtype=number
        )[:1],
        [x1],
        [expected(x1, False)],
    )
    rows = gamma.view(1, 16), beta.view(1, 16)  # as [H]
    run(
        lambda x: (torch_npu.npu_rms_norm_quant(x, *to_npu([*rows, scale, offset]), 1e-6, dst_dtype=number),),
        [x1],
        [expected(x1, True)],
    )
    run(
        lambda a, b: torch_npu.npu_add_rms_norm_quant(
            a, b, *to_npu([gamma, scale, offset]), beta.npu(), dst_type=number
        )[:1],
        [x1, x2],
        [expected(x1 + x2, True)],
    )


@pytest.mark.parametrize("number", [290, 291, 292])
@pytest.mark.parametrize("mode", ["pertoken", "perchannel", "pertensor"])
def test_dynamic_quant(number, mode):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(6)).bfloat16()
    x[0, 0] = 0
    top = 15.0 if number == 290 and mode == "pertensor" else 0.0
    dims = {"pertoken": (2,), "perchannel": (1,), "pertensor": (0, 1, 2)}[mode]
    scale = x.float().abs().amax(dims, keepdim=True) / (top or LARGEST[number])
    y = rounded(x.float() / scale.masked_fill(scale == 0, 1), number)
    asked = {291: torch.float8_e5m2, 292: torch.float8_e4m3fn}.get(number, number)

    def quantized(x):
        return torch_npu.npu_dynamic_quant(x, dst_type=asked, quant_mode=mode, dst_type_max=top)

    wanted = scale.reshape(1) if mode == "pertensor" else scale.squeeze(dims[0])
    graph = {290: "static", 292: "dynamic"}.get(number)
    modes = ("eager", graph) if mode == "pertoken" and graph else ("eager",)
    run(quantized, [x], [y, wanted], modes)


@pytest.mark.parametrize("number", [290, 291])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_gelu_quant(number, mode):
    generator = torch.Generator().manual_seed(7)
    x, factors, shift = (torch.randn(size, generator=generator) for size in ((3, 8), (8,), (8,)))
    values = x.double() * (1 + torch.erf(x.double() / math.sqrt(2))) / 2 * factors.double()
    values = (values + shift if mode == "static" else values).float()
    scale = values.abs().amax(1) / LARGEST[number]
    y = rounded(values if mode == "static" else values / scale.unsqueeze(1), number)

    def quantized(x, factors, shift):
        offset = shift if mode == "static" else None
        found = torch_npu.npu_gelu_quant(x, input_scale=factors, input_offset=offset, quant_mode=mode, dst_type=number)
        return found if mode == "dynamic" else found[:1]

    run(quantized, [x, factors, shift], [y, scale][: 1 + (mode == "dynamic")], ("eager",), rtol=1e-6)


CALLS = {
    "product": (
        "A2",
        lambda x: torch_npu.npu_dynamic_block_quant(x, dst_type=291),
        "only Ascend 950 has it, the product is A2",
    ),
    "block of A2": (
        "A2",
        lambda x: torch_npu.npu_dynamic_block_quant(x, row_block_size=128),
        "row_block_size must be one of 1",
    ),
    "integer": (
        "950",
        lambda x: torch_npu.npu_quant_max(x, torch.ones(1).npu(), dst_dtype=1),
        "dst_dtype must be float8_e5m2",
    ),
    "random rounding": (
        "950",
        lambda x: torch_npu.npu_quant_max(x, torch.ones(1).npu(), round_mode="hybrid", dst_dtype=290),
        "'hybrid' is random",
    ),
    "largest": (
        "950",
        lambda x: torch_npu.npu_dynamic_block_quant(x, dst_type=291, dst_type_max=15.0),
        "dst_type_max must be one of 0.0",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_refusals(case, product):
    need_operator("npu_quant_max")
    name, call, message = CALLS[case]
    product(name)
    with pytest.raises(RuntimeError, match=message):
        call(torch.ones(4, 64).half().npu())
