"""Products with something behind them, a convolution among them: each against loops from its document, eager and in graph mode."""

import importlib
import math

import numpy as np
import pytest
import torch
import torch_npu

from everywhere import check
from versions import need_operator


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape).to(torch.int8)


GELU = {
    "gelu_erf": lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))),
    "gelu_tanh": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
}


@pytest.mark.parametrize("kind", ["", "relu", "add", "mul", "gelu_erf", "gelu_tanh", "16cast32"])
def test_fused_matmul(kind, monkeypatch):
    torch.manual_seed(0)
    x, x2, x3 = torch.randn(4, 6).half(), torch.randn(6, 3).half(), torch.randn(4, 3).half()
    third = x3 if kind in ("add", "mul") else None
    bias = None if kind in GELU else torch.randn(3).half()
    expected = torch.empty(4, 3, dtype=torch.float64)
    for i in range(4):
        for j in range(3):
            value = sum(float(x[i, k]) * float(x2[k, j]) for k in range(6)) + (0 if bias is None else float(bias[j]))
            value = value + float(x3[i, j]) if kind == "add" else value * float(x3[i, j]) if kind == "mul" else value
            value = max(value, 0.0) if kind == "relu" else GELU.get(kind, float)(value)
            expected[i, j] = value

    def product(x, x2, bias, x3):
        return torch_npu.npu_fused_matmul(x, x2, bias=bias, x3=x3, fused_op_type=kind)

    # torchair lowers it for Ascend 950 alone
    converter = importlib.import_module("torchair._ge_concrete_graph.ge_converter.custom.fused_matmul")
    monkeypatch.setattr(converter, "is_arch35", lambda: True)
    dtype = torch.float32 if kind == "16cast32" else torch.float16
    modes = {"add": ("eager", "static", "dynamic"), "gelu_erf": ("eager", "static")}.get(kind, ("eager",))
    check(product, [x, x2, bias, third], [expected.to(dtype)], modes=modes, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("arguments", [dict(fused_op_type="sub"), dict(fused_op_type="add"), dict(x3=torch.ones(2, 2))])
def test_fused_matmul_refuses(arguments):
    given = {name: value.npu() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    with pytest.raises(RuntimeError, match="npu_fused_matmul: (fused_op_type|x3) must be"):
        torch_npu.npu_fused_matmul(torch.ones(2, 2).npu(), torch.ones(2, 2).npu(), **given)


@pytest.mark.parametrize("with_a", [True, False])
def test_batch_gather_matmul(with_a):
    torch.manual_seed(1)
    y, x = torch.randn(4, 10).half(), torch.randn(4, 6 if with_a else 2).half()
    a, b = torch.randn(3, 2, 2, 6).half(), torch.randn(3, 2, 4, 2).half()
    indices = torch.tensor([2, 0, 3, 1], dtype=torch.int32)  # 3: no weights
    expected = y.double().clone()
    for row, index in enumerate(indices.tolist()):
        if index == 3:
            continue
        z = a[index, 1].double() @ x[row].double() if with_a else x[row].double()
        expected[row, 5:9] += b[index, 1].double() @ z * 0.5

    def lora(y, x, b, indices, a):
        return torch_npu.npu_batch_gather_matmul(
            y, x, b, indices, a, layer_idx=1, scale=0.5, y_offset=5, y_slice_size=4
        )

    arguments = [y, x, b, indices, a if with_a else None]
    modes = ("eager", "static", "dynamic") if with_a else ("eager", "static")
    check(lora, arguments, [expected.half(), y], modes=modes, rtol=2**-10, atol=1e-6)
    changed = y.npu()
    others = [x.npu(), b.npu(), indices.npu(), a.npu() if with_a else None]
    found = torch_npu.npu_batch_gather_matmul_(changed, *others, 1, 0.5, 5, 4)
    assert found is changed
    torch.testing.assert_close(changed.cpu().double(), expected, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("form", ["row", "given", "tensor"])
def test_quant_grouped_matmul_dequant(form):
    torch.manual_seed(2)
    x, weight, scale, smooth = torch.randn(6, 8).half(), int8(3, 5, 8), torch.rand(3, 5) / 50, torch.rand(8).half()
    ends = torch.tensor([2, 2, 6])
    tokens = {"row": None, "given": torch.rand(6) / 20, "tensor": torch.tensor([0.03])}[form]
    expected = torch.empty(6, 5)
    for i in range(6):
        group = 0 if i < 2 else 2
        row = x[i].float() * smooth.float()
        step = row.abs().max() / 127 if tokens is None else tokens[0 if form == "tensor" else i]
        q = (row / step).round().clamp(-128, 127).long()
        for j in range(5):
            expected[i, j] = float(int((q * weight[group, j].long()).sum())) * scale[group, j] * step

    def product(x, weight, scale, ends, tokens, smooth):
        mode = "pertensor" if form == "tensor" else "pertoken"
        return torch_npu.npu_quant_grouped_matmul_dequant(
            x, weight, scale, ends, x_scale=tokens, smooth_scale=smooth, quant_mode=mode
        )

    modes = ("eager", "static", "dynamic") if form == "row" else ("eager",)
    check(product, [x, weight, scale, ends, tokens, smooth], [expected.half()], modes=modes, rtol=2**-10, atol=1e-6)


def test_quant_conv2d():
    rng = np.random.default_rng(3)
    x, weight = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((2, 4, 5, 6), (6, 2, 3, 2)))
    bias = rng.integers(-999, 999, 6).astype(np.int32)
    scale = torch.tensor(rng.uniform(1e-4, 1e-3, 6).astype(np.float32))
    packed = torch_npu.npu_trans_quant_param(scale.npu()).cpu()
    kept = np.array([int(word) & 0xFFFFFFFF for word in packed], dtype=np.uint32).view(np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2))).astype(np.int64)
    expected = np.empty((2, 6, 3, 8), dtype=np.float32)  # stride 2, 1; dilation 1, 2; 2 groups
    for n in range(2):
        for c in range(6):
            for i in range(3):
                for j in range(8):
                    window = padded[n, c // 3 * 2 : c // 3 * 2 + 2, 2 * i : 2 * i + 3, j : j + 3 : 2]
                    expected[n, c, i, j] = np.float32((window * weight[c].astype(np.int64)).sum() + bias[c]) * kept[c]

    def convolved(x, weight, scale, bias):
        return torch_npu.npu_quant_conv2d(
            x, weight, scale, [2, 1], [1, 2], [1, 2], 2, output_dtype=torch.float16, bias=bias
        )

    arguments = [torch.tensor(x), torch.tensor(weight), packed, torch.tensor(bias)]
    check(convolved, arguments, [torch.tensor(expected).half()], rtol=2**-11)


@pytest.mark.parametrize("div_mode", [True, False])
def test_rms_norm_backward_quant(div_mode):
    need_operator("_npu_rms_norm_backward_quant")
    rng = np.random.default_rng(4)
    x, dy = rng.standard_normal((3, 2, 8)), rng.standard_normal((3, 2, 8))
    gamma, scale = rng.standard_normal(8), np.float32(0.02 if div_mode else 50)
    x, dy, gamma = (v.astype(np.float32) for v in (x, dy, gamma))
    rstd = 1 / np.sqrt((x.astype(np.float64) ** 2).mean(-1) + 1e-6)
    dx, dgamma = np.empty((3, 2, 8)), np.zeros(8)
    for i in range(3):
        for j in range(2):
            r = rstd[i, j]
            through = dy[i, j].astype(np.float64) * gamma
            dx[i, j] = r * through - x[i, j] * r**3 * (through * x[i, j]).mean()
            dgamma += dy[i, j] * x[i, j] * r
    steps = dx / scale if div_mode else dx * scale
    expected = torch.tensor(np.clip(np.round(steps + 3), -128, 127)).to(torch.int8)
    given = [torch.tensor(v) for v in (dy, x, rstd.astype(np.float32), gamma)]
    given += [torch.tensor([scale]), torch.tensor([3], dtype=torch.int32)]

    def quantised(dy, x, rstd, gamma, scale, offset):
        return torch.ops.npu._npu_rms_norm_backward_quant(dy, x, rstd, gamma, scale, offset_x=offset, div_mode=div_mode)

    check(quantised, given, [expected, torch.tensor(dgamma).float()], rtol=1e-5, atol=1.0)
