"""To int8 and int4, and back: each operator against loops from its document, eager and in graph mode."""

import math

import pytest
import torch
import torch_npu

from everywhere import check
from moe_graph.conformance import converters
from versions import need_operator


def packed(values: torch.Tensor) -> torch.Tensor:
    words = torch.zeros(*values.shape[:-1], values.shape[-1] // 8, dtype=torch.int64)
    for i in range(8):
        words |= (values[..., i::8].long() & 15) << (4 * i)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def rounded(value: float, low: int, high: int) -> int:
    return max(low, min(high, round(value)))


@pytest.mark.parametrize(
    "number, low, high, dtype",
    [
        (torch.qint8, -128, 127, torch.int8),
        (torch.quint8, 0, 255, torch.uint8),
        (torch.qint32, -(2**31), 2**31 - 1, torch.int32),
    ],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_quantize_by_division(number, low, high, dtype, zeros):
    torch.manual_seed(1)
    x, scales = torch.randn(2, 3, 4) * 9, torch.tensor([0.25, 0.125, 0.03125])  # powers of two: the quotients are exact
    x[0, 0, 0] = 0.625 * 0.25  # a half of a step, after the point is moved
    points = torch.tensor([3, 0, 1], dtype=torch.int32) if zeros else None
    expected = torch.empty(2, 3, 4, dtype=torch.int64)
    for i in range(2):
        for j in range(3):
            for k in range(4):
                value = float(x[i, j, k]) / float(scales[j]) + (int(points[j]) if zeros else 0)
                expected[i, j, k] = rounded(float(torch.tensor(value, dtype=torch.float32)), low, high)

    def quantized(x, scales, points):
        return torch_npu.npu_quantize(x, scales, points, number, 1)

    modes = ("eager", "dynamic") if zeros else ("eager",)
    check(quantized, [x, scales, points], [expected.to(dtype)], modes=modes)


@pytest.mark.parametrize("axis, shape", [(-1, (16,)), (-2, (3,)), (-2, (3, 1)), (-1, (1,))])
@pytest.mark.parametrize("number", [torch.qint8, torch.quint4x2])
def test_quantize_by_multiplication(axis, shape, number):
    torch.manual_seed(2)
    x, scales, offsets = torch.randn(3, 16).half(), (torch.rand(shape) * 6).half(), torch.randn(shape).half()
    low, high = (-128, 127) if number == torch.qint8 else (-8, 7)
    expected = torch.empty(3, 16, dtype=torch.int64)
    for i in range(3):
        for j in range(16):
            at = 0 if math.prod(shape) == 1 else i if axis == -2 else j
            value = x[i, j].float() * scales.flatten()[at].float() + offsets.flatten()[at].float()
            expected[i, j] = rounded(float(value), low, high)
    wanted = expected.to(torch.int8) if number == torch.qint8 else packed(expected)

    def quantized(x, scales, offsets):
        return torch_npu.npu_quantize(x, scales, offsets, number, axis, False)

    modes = ("eager", "dynamic") if shape == (16,) else ("eager", "static") if shape == (3,) else ("eager",)
    check(quantized, [x, scales, offsets], [wanted], modes=modes)


@pytest.mark.parametrize("number", [torch.int8, torch.quint4x2])
@pytest.mark.parametrize("groups", [False, True])
def test_dynamic_quant_asymmetric(number, groups):
    torch.manual_seed(3)
    x = torch.randn(2, 3, 8).half()
    x[1, 2] = 1.5  # nothing to tell apart: the least scale
    smooth = (torch.rand(2, 8) + 0.5).half() if groups else None
    ends = torch.tensor([2, 6], dtype=torch.int32) if groups else None
    high, steps = (127, 255) if number == torch.int8 else (7, 15)
    y, scale, offset = torch.empty(6, 8, dtype=torch.int64), torch.empty(6), torch.empty(6)
    for row, values in enumerate(x.view(6, 8).float()):
        values = values * smooth[0 if row < 2 else 1].float() if groups else values
        scale[row] = max((values.max() - values.min()) / steps, torch.tensor(1e-12))
        offset[row] = high - values.max() / scale[row]
        for j, value in enumerate(values):
            y[row, j] = rounded(float(value / scale[row] + offset[row]), -high - 1, high)
    y = y.view(2, 3, 8)
    wanted = y.to(torch.int8) if number == torch.int8 else packed(y)

    def quantized(x, smooth, ends):
        return torch_npu.npu_dynamic_quant_asymmetric(x, smooth_scales=smooth, group_index=ends, dst_type=number)

    modes = ("eager", "dynamic") if groups else ("eager", "static")
    check(quantized, [x, smooth, ends], [wanted, scale.view(2, 3), offset.view(2, 3)], modes=modes, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("with_offset", [False, True])
@pytest.mark.parametrize("is_int4", [False, True])
def test_anti_quant(dtype, with_offset, is_int4):
    torch.manual_seed(4)
    x = torch.randint(-8, 8, (3, 16)) if is_int4 else torch.randint(-128, 128, (3, 16))
    scale, offset = torch.rand(16), torch.randn(16) if with_offset else None
    expected = torch.empty(3, 16, dtype=dtype)
    for i in range(3):
        for j in range(16):
            expected[i, j] = (x[i, j].float() + (offset[j] if with_offset else 0)) * scale[j]
    source = torch.quint4x2 if is_int4 else torch.int8

    def restored(x, scale, offset):
        return torch_npu.npu_anti_quant(x, scale, offset=offset, dst_dtype=dtype, src_dtype=source)

    given = packed(x) if is_int4 else x.to(torch.int8)
    modes = ("eager", "dynamic") if with_offset and dtype == torch.float16 else ("eager",)
    check(restored, [given, scale, offset], [expected], modes=modes)


@pytest.mark.parametrize("number", [torch.int8, torch.quint4x2])
def test_group_quant(number):
    torch.manual_seed(5)
    x, scale, ends = torch.randn(6, 16).half(), torch.randn(4, 16) * 20, torch.tensor([1, 4, 6, 6], dtype=torch.int32)
    offset = torch.randn(1)
    low, high = (-128, 127) if number == torch.int8 else (-8, 7)
    expected = torch.empty(6, 16, dtype=torch.int64)
    for i in range(6):
        group = 0 if i < 1 else 1 if i < 4 else 2
        for j in range(16):
            expected[i, j] = rounded(float(x[i, j].float() * scale[group, j] + offset[0]), low, high)
    wanted = expected.to(torch.int8) if number == torch.int8 else packed(expected)

    def quantized(x, scale, ends, offset):
        return torch_npu.npu_group_quant(x, scale, ends, offset=offset, dst_dtype=number)

    check(quantized, [x, scale, ends, offset], [wanted], modes=("eager", "dynamic"))
    with pytest.raises(RuntimeError, match="group_index must be non-decreasing and end with the 6 rows"):
        quantized(x.npu(), scale.npu(), (ends - 1).npu(), offset.npu())


@pytest.mark.parametrize("bias", [None, torch.int32, torch.float32, torch.bfloat16])
def test_dequant_bias(bias):
    torch.manual_seed(6)
    x, weight, token = torch.randint(-(2**20), 2**20, (3, 5), dtype=torch.int32), torch.rand(5) / 999, torch.rand(3)
    given = None if bias is None else (torch.randn(5) * 50).to(bias)
    expected = torch.empty(3, 5, dtype=torch.bfloat16)
    for i in range(3):
        for j in range(5):
            whole = int(x[i, j]) + (int(given[j]) if bias == torch.int32 else 0)
            value = torch.tensor(whole, dtype=torch.float32) * weight[j] * token[i]
            expected[i, j] = value + (given[j].float() if bias in (torch.float32, torch.bfloat16) else 0)

    def restored(x, weight, token, given):
        return torch_npu.npu_dequant_bias(x, weight, token, given, output_dtype=torch.bfloat16)

    modes = ("eager", "static", "dynamic") if bias == torch.int32 else ("eager",)
    check(restored, [x, weight, token, given], [expected], modes=modes)


def silu(value: torch.Tensor) -> torch.Tensor:
    return value / (1 + torch.exp(-value))


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("counts", [None, False, True])
def test_swiglu_quant(mode, left, counts):
    torch.manual_seed(7)
    x = torch.randn(6, 8)
    scales, offsets = torch.randn(1 if counts is None else 3, 4) * 9, torch.randn(1 if counts is None else 3, 4)
    ends = [2, 2, 5]  # the last row belongs to nobody
    given = None if counts is None else torch.tensor([2, 0, 3] if counts else ends, dtype=torch.int32)
    y, scale = torch.zeros(6, 4, dtype=torch.int8), torch.zeros(6)
    for row in range(6 if counts is None else 5):
        group = 0 if counts is None else next(g for g in range(3) if row < ends[g])
        a, b = (x[row, :4], x[row, 4:]) if left else (x[row, 4:], x[row, :4])
        v = (silu(a.double()) * b * scales[group]).float()
        v = v + offsets[group] if mode == 0 else v
        scale[row] = 127 / v.abs().max() if mode == 1 else 0
        y[row] = (v * scale[row] if mode == 1 else v).round().clamp(-128, 127).to(torch.int8)

    def quantized(x, scales, offsets, given):
        return torch_npu.npu_swiglu_quant(
            x,
            smooth_scales=scales,
            offsets=offsets,
            group_index=given,
            activate_left=left,
            quant_mode=mode,
            group_list_type=int(bool(counts)),
        )

    check(quantized, [x, scales, offsets, given], [y, scale], modes=("eager",), rtol=1e-5)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_gelu_quant(approximate, mode):
    torch.manual_seed(8)
    x, scale, offset = torch.randn(3, 8), torch.rand(8) * 40, torch.randn(8)
    y, out = torch.empty(3, 8, dtype=torch.int8), torch.empty(3)
    for row in range(3):
        v = []
        for value, factor in zip(x[row].tolist(), scale.tolist()):
            inner = math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)
            gate = 1 + (math.tanh(inner) if approximate == "tanh" else math.erf(value / math.sqrt(2)))
            v.append(0.5 * value * gate * factor)
        out[row] = max(map(abs, v)) / 127
        for j, value in enumerate(v):
            y[row, j] = rounded(value / float(out[row]) if mode == "dynamic" else value + float(offset[j]), -128, 127)

    def quantized(x, scale, offset):
        offset = offset if mode == "static" else None
        found = torch_npu.npu_gelu_quant(
            x, input_scale=scale, input_offset=offset, approximate=approximate, quant_mode=mode, dst_type=1
        )
        return found if mode == "dynamic" else found[0]

    modes = ("eager", "static") if approximate == "tanh" else ("eager",)
    check(quantized, [x, scale, offset], [y, out] if mode == "dynamic" else [y], modes=modes, rtol=1e-5)


@pytest.mark.parametrize("number", [torch.int8, torch.quint4x2])
def test_rotate_quant(number):
    need_operator("npu_rotate_quant")
    torch.manual_seed(9)
    x, rotation, high = torch.randn(3, 16).bfloat16(), torch.randn(8, 8).bfloat16(), 127 if number == torch.int8 else 7
    x[1] = 0
    y, scale = torch.zeros(3, 16, dtype=torch.int64), torch.zeros(3)
    for i in range(3):
        v = torch.cat([x[i, :8].float() @ rotation.float(), x[i, 8:].float() @ rotation.float()])
        scale[i] = v.abs().max() / high
        for j in range(16):
            y[i, j] = rounded(float(v[j] / scale[i]), -high - 1, high) if scale[i] else 0

    def quantized(x, rotation):
        return torch_npu.npu_rotate_quant(x, rotation, dst_dtype=number)

    if number == torch.int8:
        check(quantized, [x, rotation], [y.to(torch.int8), scale], modes=("eager", "static"), rtol=1e-5, atol=1e-6)
    else:
        check(quantized, [x, rotation], [packed(y), scale], modes=("eager", "static"), rtol=1e-5, atol=1e-6)


def test_kronecker_quant():
    torch.manual_seed(10)
    x, p1, p2 = torch.randn(3, 4, 16).half(), torch.randn(4, 4).half(), torch.randn(16, 16).half()
    y, scale = torch.empty(3, 4, 16, dtype=torch.int64), torch.empty(3)
    for k in range(3):
        v = p1.double() @ x[k].double() @ p2.double()
        scale[k] = v.abs().max() * 0.75 / 7
        y[k] = (v / float(scale[k])).round().clamp(-8, 7).long()

    def quantized(x, p1, p2):
        return torch_npu.npu_kronecker_quant(x, p1, p2, 0.75)

    check(quantized, [x, p1, p2], [packed(y), scale], modes=("eager", "static"), rtol=1e-5)


def test_dynamic_quantisation_to_int4():
    x = torch.randn(3, 16).half()
    scale = x.float().abs().amax(-1) / 7
    whole = torch.stack([(row.float() / step).round() for row, step in zip(x, scale)])

    def quantized(x):
        return torch_npu.npu_dynamic_quant(x, dst_type=torch.quint4x2)

    check(quantized, [x], [packed(whole), scale], modes=("eager", "static"), rtol=1e-6)


def test_forms_that_are_not_served_are_named():
    x = torch.randn(2, 8).npu()
    with pytest.raises(NotImplementedError, match="npu_quantize: dtype must be qint8, quint8 or qint32"):
        torch_npu.npu_quantize(x, torch.ones(8).npu(), None, torch.float8_e5m2, 1)
    with pytest.raises(NotImplementedError, match="npu_swiglu_quant: dst_type must be int8"):
        torch_npu.npu_swiglu_quant(x, dst_type=torch.quint4x2)


# These read and write windows of device memory, whose layout no public document has.
BY_ADDRESS = (
    "attention_to_ffn",
    "attention_worker_scheduler",
    "ffn_to_attention",
    "ffn_worker_scheduler",
    "npu_attention_worker_combine",
    "npu_ffn_worker_batching",
)
OF_OLDER_VERSIONS = ("kv_quant_sparse_flash_attention_pioneer", "quant_all_reduce", "quant_reduce_scatter")


def test_the_table_of_torchairs_converters():
    rows = converters.table()
    assert rows["npu_anti_quant"] == ({"AscendAntiQuantV2", "Bitcast", "Mul", "Reshape", "Shape"}, set())
    assert rows["npu_prefetch"][0]  # written as a custom_op
    assert not rows["quantized"][1] and not rows["npu_dynamic_quant"][1]
    assert {name for name, (_, missing) in rows.items() if missing} <= {*BY_ADDRESS, *OF_OLDER_VERSIONS}
