"""npu_quant_matmul and npu_trans_quant_param against loops from their documents."""

import math
import struct

import pytest
import torch
import torch_npu

from everywhere import check
from versions import need_operator

M, K, N = 3, 40, 16


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape).to(torch.int8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("scales", ["one", "channel", "channel and token"])
@pytest.mark.parametrize("bias", [None, torch.int32, torch.float32])
def test_products_scaled_back(dtype, scales, bias):
    if dtype == torch.int8 and (scales == "channel and token" or bias == torch.float32):
        pytest.skip("the document has no int8 results of these")
    torch.manual_seed(0)
    x1, x2 = int8(M, K), int8(K, N)
    scale = torch.rand(1 if scales == "one" else N) / (3000 if dtype != torch.int8 else 900)
    token = torch.rand(M) if scales == "channel and token" else None
    given = None if bias is None else torch.randint(-500, 500, (N,)).to(bias) / (1 if bias == torch.int32 else 100)
    given = given.to(bias) if bias is not None else None
    expected = torch.zeros(M, N, dtype=torch.float64)
    for i in range(M):
        for j in range(N):
            total = int((x1[i].long() * x2[:, j].long()).sum())
            total += int(given[j]) if bias == torch.int32 else 0
            y = total * float(scale[0 if scales == "one" else j]) * (float(token[i]) if token is not None else 1.0)
            expected[i, j] = y + (float(given[j]) if bias == torch.float32 else 0.0)
    wanted = expected.round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else expected.to(dtype)

    def product(x1, x2, scale, token, bias):
        return torch_npu.npu_quant_matmul(x1, x2, scale, pertoken_scale=token, bias=bias, output_dtype=dtype)

    if dtype != torch.bfloat16:  # float32 scales of float16 and int8 results travel packed, cut to 19 bits
        scale = torch_npu.npu_trans_quant_param(scale.npu()).cpu() if token is None else scale
    tolerance = dict(rtol=2**-7, atol=1.0 if dtype == torch.int8 else 2**-7)
    modes = ("eager", "static") if scales != "one" else ("eager",)
    check(product, [x1, x2, scale, token, given], [wanted], modes=modes, **tolerance)


def test_sums_are_exact():
    x1, x2 = torch.full((1, 4096), -128, dtype=torch.int8), torch.full((4096, 16), -128, dtype=torch.int8)
    x2[0] = 127
    found = torch_npu.npu_quant_matmul(x1.npu(), x2.npu(), torch.ones(1).npu(), output_dtype=torch.int32)
    assert found.cpu().tolist() == [[128 * 128 * 4095 - 128 * 127] * 16]


def test_batches_and_transposed_weights():
    x1, weight = int8(2, M, K), int8(N, K)
    scale = torch.rand(N).bfloat16() / 1000
    expected = (x1.double() @ weight.t().double() * scale.double()).bfloat16()

    def product(x1, weight, scale):
        return torch_npu.npu_quant_matmul(x1, weight.t(), scale, output_dtype=torch.bfloat16)

    check(product, [x1, weight, scale], [expected], rtol=2**-7, atol=2**-9)


def packed(values: torch.Tensor) -> torch.Tensor:
    words = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
    for i in range(8):
        words |= (values[:, i::8].long() & 15) << (4 * i)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def test_int4():
    x1, x2 = torch.randint(-8, 8, (M, K)), torch.randint(-8, 8, (K, N))
    scale = torch.rand(N) / 10
    param = torch_npu.npu_trans_quant_param(scale.npu()).cpu()
    expected = (x1.double() @ x2.double() * scale.double()).half()

    def product(x1, x2, scale):
        return torch_npu.npu_quant_matmul(x1, x2, scale, output_dtype=torch.float16)

    check(product, [packed(x1), packed(x2), param], [expected], modes=("eager", "static"), rtol=2**-9, atol=2**-9)


@pytest.mark.parametrize("approximate", ["gelu_erf", "gelu_tanh"])
@pytest.mark.parametrize("bias", [None, torch.int32, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
def test_quant_matmul_gelu(approximate, bias, bits):
    need_operator("npu_quant_matmul_gelu")
    torch.manual_seed(0)
    half = 2 ** (bits - 1)
    x1, x2 = torch.randint(-half, half, (M, K)), torch.randint(-half, half, (K, N))
    x1_scale, x2_scale = torch.rand(M), (torch.rand(N) / half**2 / 3).to(torch.float32 if bits == 8 else torch.bfloat16)
    given = None if bias is None else torch.randint(-500, 500, (N,)).to(bias) / (1 if bias == torch.int32 else 300)
    given = None if bias is None else given.to(bias)
    dtype = torch.bfloat16 if torch.bfloat16 in (bias, x2_scale.dtype) else torch.float16
    expected = torch.zeros(M, N, dtype=dtype)
    for i in range(M):
        for j in range(N):
            total = int((x1[i] * x2[:, j]).sum()) + (int(given[j]) if bias == torch.int32 else 0)
            y = total * float(x1_scale[i]) * float(x2_scale[j])
            y += float(given[j]) if bias not in (None, torch.int32) else 0.0
            inner = math.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))
            expected[i, j] = 0.5 * y * (1 + (math.erf(y / math.sqrt(2)) if approximate == "gelu_erf" else inner))

    def product(x1, x2, x1_scale, x2_scale, bias):
        return torch_npu.npu_quant_matmul_gelu(x1, x2, x1_scale, x2_scale, bias=bias, approximate=approximate)

    operands = [packed(x) if bits == 4 else x.to(torch.int8) for x in (x1, x2)]
    tolerance = dict(rtol=2**-7, atol=1e-4) if dtype == torch.bfloat16 else dict(rtol=2**-10, atol=1e-5)
    check(product, [*operands, x1_scale, x2_scale, given], [expected], modes=("eager",), **tolerance)
    for wrong in ("gelu", ""):
        with pytest.raises(RuntimeError, match=f"approximate must be 'gelu_tanh' or 'gelu_erf', got '{wrong}'"):
            torch_npu.npu_quant_matmul_gelu(
                *(x.npu() for x in operands), x1_scale.npu(), x2_scale.npu(), approximate=wrong
            )


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("with_offset", [False, True])
def test_packed_parameters(mode, with_offset):
    scale, offset = torch.randn(16), torch.randn(16) * 300
    expected = []
    for s, o in zip(scale.tolist(), offset.tolist()):
        bits = struct.unpack("<I", struct.pack("<f", s))[0]
        if mode:
            low = bits & 0x1FFF
            bits = bits - low + (0x2000 if low > 0x1000 or (low == 0x1000 and bits & 0x2000) else 0)
        word = (bits & 0xFFFFE000) | 1 << 46
        expected.append(word | ((max(-256, min(255, round(o))) & 0x1FF) << 37 if with_offset else 0))
    args = [scale, offset if with_offset else None, mode]
    check(torch_npu.npu_trans_quant_param, args, [torch.tensor(expected)], modes=("eager", "static"))


def test_forms_that_are_not_served_are_named():
    x1, x2, scale = int8(M, K).npu(), int8(K, N).npu(), torch.ones(1).npu()
    with pytest.raises(RuntimeError, match="group_sizes must be 0 or None without scales of blocks"):
        torch_npu.npu_quant_matmul(x1, x2, scale, output_dtype=torch.float16, group_sizes=[1, 128, 128])
