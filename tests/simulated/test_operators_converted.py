"""Operators of torchair's custom converters, each against loops from its document, eager and in graph mode."""

import math

import pytest
import torch
import torch_npu

from everywhere import check
from versions import need_operator


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape).to(torch.int8)


@pytest.mark.parametrize("form", ["row", "given", "tensor"])
def test_quant_matmul_dequant(form):
    torch.manual_seed(0)
    x, weight, scale = torch.randn(3, 16).half(), int8(5, 16), torch.rand(5) / 50
    bias, smooth = torch.randint(-99, 99, (5,), dtype=torch.int32), torch.rand(16).half()
    tokens = {"row": None, "given": torch.rand(3) / 20, "tensor": torch.tensor([0.03])}[form]
    expected = torch.empty(3, 5)
    for i in range(3):
        row = x[i].float() * smooth.float()
        step = row.abs().max() / 127 if tokens is None else tokens[0 if form == "tensor" else i]
        q = (row / step).round().clamp(-128, 127).long()
        for j in range(5):
            expected[i, j] = float(int((q * weight[j].long()).sum()) + int(bias[j])) * scale[j] * step

    def product(x, weight, scale, bias, tokens, smooth):
        return torch_npu.npu_quant_matmul_dequant(
            x,
            weight,
            scale,
            bias=bias,
            x_scale=tokens,
            smooth_scale=smooth,
            quant_mode="pertensor" if form == "tensor" else "pertoken",
        )

    modes = ("eager", "dynamic") if form == "row" else ("eager",)
    check(product, [x, weight, scale, bias, tokens, smooth], [expected.half()], modes=modes, rtol=2**-10, atol=1e-6)


def test_quant_matmul_reduce_sum():
    torch.manual_seed(1)
    x1, x2, s1, s2 = int8(3, 4, 32), int8(3, 32, 16), torch.rand(3, 4), (torch.rand(16) / 999).bfloat16()
    expected = torch.zeros(4, 16, dtype=torch.float64)
    for b in range(3):
        for i in range(4):
            for j in range(16):
                expected[i, j] += int((x1[b, i].long() * x2[b, :, j].long()).sum()) * float(s1[b, i]) * float(s2[j])

    def product(x1, x2, s1, s2):
        return torch_npu.npu_quant_matmul_reduce_sum(x1, x2, x1_scale=s1, x2_scale=s2)

    check(product, [x1, x2, s1, s2], [expected.bfloat16()], modes=("eager", "static"), rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_silu(affine, dtype):
    torch.manual_seed(2)
    x = torch.randn(2, 6, 3, 4).to(dtype)
    weight, bias = (torch.randn(6).to(dtype), torch.randn(6).to(dtype)) if affine else (None, None)
    y, means, rstds = torch.empty(2, 6, 3, 4, dtype=torch.float64), torch.empty(2, 3), torch.empty(2, 3)
    for n in range(2):
        for g in range(3):
            part = x[n, 2 * g : 2 * g + 2].double()
            mean, var = part.mean(), part.var(unbiased=False)
            means[n, g], rstds[n, g] = mean, 1 / math.sqrt(var + 1e-3)
            for c in (2 * g, 2 * g + 1):
                v = (x[n, c].double() - mean) / math.sqrt(var + 1e-3)
                v = v * float(weight[c]) + float(bias[c]) if affine else v
                y[n, c] = v / (1 + torch.exp(-v))

    def normalized(x, weight, bias):
        return torch_npu.npu_group_norm_silu(x, weight, bias, 3, 1e-3)

    expected = [y.to(dtype), means.to(dtype), rstds.to(dtype)]
    tolerance = dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=2**-8, atol=1e-6)
    check(normalized, [x, weight, bias], expected, modes=("eager", "dynamic") if affine else ("eager",), **tolerance)


@pytest.mark.parametrize("shape", [(2, 3, 2, 4, 5), (6, 2, 4, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_masked_softmax_with_rel_pos_bias(shape, masked):
    torch.manual_seed(3)
    x, bias = torch.randn(shape).half(), torch.randn(1, 2, 4, 5).half()
    mask = torch.randn(3, 1, 4, 5).half() if masked else None
    bias = bias.unsqueeze(0) if len(shape) == 5 else bias
    expected = torch.empty(6, 2, 4, 5)
    for window in range(6):
        for head in range(2):
            for row in range(4):
                v = 0.5 * x.view(6, 2, 4, 5)[window, head, row].double() + bias.view(2, 4, 5)[head, row]
                v = v + mask[window % 3, 0, row] if masked else v
                expected[window, head, row] = torch.exp(v) / torch.exp(v).sum()
    given = mask.unsqueeze(0) if masked and len(shape) == 5 else mask

    def softmax(x, mask, bias):
        return torch_npu.npu_masked_softmax_with_rel_pos_bias(x, mask, bias, 0.5)

    modes = ("eager", "static") if masked else ("eager",)
    check(softmax, [x, given, bias], [expected.view(shape).half()], modes=modes, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("pruned", [None, False, True])
def test_moe_update_expert(mode, pruned):
    torch.manual_seed(4)
    counts = [1, 3, 2, 4]
    table = torch.zeros(4, 5, dtype=torch.int32)
    for expert, count in enumerate(counts):
        table[expert, 0], table[expert, 1 : 1 + count] = count, torch.randperm(8)[:count]
    ids = torch.randint(0, 4, (6, 2), dtype=torch.int64)
    scales, threshold = (None, None) if pruned is None else (torch.rand(6, 2), torch.rand(1, 2))
    active = torch.arange(6) < 4 if pruned else None
    moved, stays = torch.empty(6, 2, dtype=torch.int64), torch.ones(6, 2, dtype=torch.bool)
    for i in range(6):
        for j in range(2):
            count = counts[int(ids[i, j])]
            place = 5 // math.ceil(8 / count) if mode == 0 else i % count
            moved[i, j] = table[ids[i, j], place + 1]
            if pruned is not None:
                stays[i, j] = bool(scales[i, j] > threshold[0, j] * scales[i].sum()) and (not pruned or i < 4)

    def updated(ids, table, scales, threshold, active):
        return torch_npu.npu_moe_update_expert(
            ids,
            table,
            expert_scales=scales,
            pruning_threshold=threshold,
            active_mask=active,
            local_rank_id=5,
            world_size=8,
            balance_mode=mode,
        )

    modes = ("eager", "static", "dynamic") if pruned else ("eager",)
    check(updated, [ids, table, scales, threshold, active], [moved, stays], modes=modes)


@pytest.mark.parametrize("masked", [False, True])
def test_masked_causal_conv1d(masked):
    need_operator("npu_masked_causal_conv1d")
    torch.manual_seed(5)
    x, weight = torch.randn(5, 2, 4).half(), torch.randn(3, 4).half()
    mask = torch.rand(2, 5) > 0.3 if masked else None
    expected = torch.zeros(5, 2, 4)
    for s in range(5):
        for b in range(2):
            if not masked or mask[b, s]:
                for k in range(3):
                    if s - (2 - k) >= 0:
                        expected[s, b] += weight[k].float() * x[s - (2 - k), b].float()

    def convolved(x, weight, mask):
        return torch_npu.npu_masked_causal_conv1d(x, weight, mask=mask)

    modes = ("eager", "dynamic") if masked else ("eager",)
    check(convolved, [x, weight, mask], [expected.half()], modes=modes, rtol=2**-10, atol=2**-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_fast_gelu_and_its_gradient(dtype):
    torch.manual_seed(6)
    x, grad = torch.randn(3, 5).to(dtype), torch.randn(3, 5).to(dtype)
    gate = 1 / (1 + torch.exp(-1.702 * x.double()))
    y = x.double() * gate
    slope = gate + 1.702 * x.double() * gate * (1 - gate)
    tolerance = dict(rtol=2**-10, atol=1e-6) if dtype == torch.float16 else dict(rtol=1e-5, atol=1e-6)
    modes = ("eager", "dynamic") if dtype == torch.float16 else ("eager",)
    check(torch_npu.fast_gelu, [x], [y.to(dtype)], modes=modes, **tolerance)
    backward = torch.ops.npu.npu_fast_gelu_backward
    check(backward, [grad, x], [(grad.double() * slope).to(dtype)], modes=modes, **tolerance)
