"""Products with quantised weights, and the fused ones of experts, against loops from their documents."""

import math

import pytest
import torch
import torch_npu

from everywhere import check
from versions import need_torch

M, K, N, E = 3, 64, 16, 2


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape).to(torch.int8)


def packed(values: torch.Tensor) -> torch.Tensor:
    words = torch.zeros(*values.shape[:-1], values.shape[-1] // 8, dtype=torch.int64)
    for i in range(8):
        words |= (values[..., i::8].long() & 15) << (4 * i)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("kind", ["tensor", "channel", "group"])
@pytest.mark.parametrize("weights", ["int8", "int4", "int4 transposed", "int8 transposed"])
def test_weight_quant_batchmatmul(kind, weights):
    torch.manual_seed(0)
    x, bias = torch.randn(M, K).half(), torch.randn(N).half()
    weight = torch.randint(-8, 8, (K, N)) if "int4" in weights else int8(K, N)
    shape = {"tensor": (1,), "channel": (N,), "group": (K // 32, N)}[kind]
    scale, offset = (torch.rand(shape) / 50).half(), torch.randn(shape).half()
    expected = torch.empty(M, N)
    for i in range(M):
        for j in range(N):
            total = 0.0
            for k in range(K):
                at = {"tensor": 0, "channel": j, "group": (k // 32, j)}[kind]
                total += float(x[i, k]) * (int(weight[k, j]) + float(offset[at])) * float(scale[at])
            expected[i, j] = total + float(bias[j])
    transposed = "transposed" in weights
    given = weight.t().contiguous() if transposed else weight
    given = packed(given) if "int4" in weights else given

    def product(x, weight, scale, offset, bias):
        weight = weight.t() if transposed else weight
        group = 32 if kind == "group" else 0
        return torch_npu.npu_weight_quant_batchmatmul(x, weight, scale, offset, bias=bias, antiquant_group_size=group)

    # torch_npu's fake implementation has no transposed int4: it would give N of the packed dimension.
    modes = (
        ("eager", "static") if (kind, weights) in (("group", "int4"), ("channel", "int8 transposed")) else ("eager",)
    )
    check(product, [x, given, scale, offset, bias], [expected.half()], modes=modes, rtol=2**-9, atol=2**-8)


@pytest.mark.parametrize("packed_scale", [False, True])
def test_weight_quant_batchmatmul_to_int8(packed_scale):
    torch.manual_seed(1)
    x, weight = torch.randn(M, K).bfloat16(), int8(K, N)
    scale, out = (
        (torch.rand(N) / 50).bfloat16(),
        (torch.rand(N) * 9).bfloat16().float(),
    )  # of few bits: packing keeps them
    shift = torch.randint(-9, 9, (N,)).float()
    expected = torch.empty(M, N, dtype=torch.int8)
    for i in range(M):
        for j in range(N):
            y = sum(float(x[i, k]) * int(weight[k, j]) * float(scale[j]) for k in range(K))
            expected[i, j] = max(-128, min(127, round(y * float(out[j]) + float(shift[j]))))

    def product(x, weight, scale, out, shift):
        return torch_npu.npu_weight_quant_batchmatmul(x, weight, scale, quant_scale=out, quant_offset=shift)

    if packed_scale:
        out, shift = torch_npu.npu_trans_quant_param(out.npu(), shift.npu()).cpu(), None
    check(product, [x, weight, scale, out, shift], [expected], modes=("eager", "static"), atol=1.0)


def test_convert_weight_to_int4pack():
    weight = torch.randint(-8, 8, (4, 16), dtype=torch.int32)
    assert torch.equal(torch_npu.npu_convert_weight_to_int4pack(weight.npu()).cpu(), packed(weight))
    with pytest.raises(RuntimeError, match="of float32: only Ascend 950 has it"):
        torch_npu.npu_convert_weight_to_int4pack(weight.float().npu())


def groups_of(sizes: list, kind: int) -> torch.Tensor:
    return torch.tensor(sizes).cumsum(0) if kind == 0 else torch.tensor(sizes)


def quantized_swiglu(c: torch.Tensor, smooth: torch.Tensor) -> tuple:
    half = len(c) // 2
    s = [
        float(a / (1 + math.exp(-a)) * b * f) for a, b, f in zip(c[:half].tolist(), c[half:].tolist(), smooth.tolist())
    ]
    scale = max(map(abs, s)) / 127
    return torch.tensor([round(v / scale) for v in s]), scale


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", [0, 1])
def test_grouped_matmul_swiglu_quant(version, kind):
    if version == 1 and kind == 1:
        pytest.skip("version 1 takes running sums alone")
    if kind == 1:
        need_torch(2, 13)  # the fake implementation of 2.8 fails
    torch.manual_seed(2)
    sizes = [2, 0, 3]
    x, weight, x_scale = int8(6, 32), int8(3, 32, N), torch.rand(6) / 100
    w_scale, smooth = torch.rand(3, N) / 30, torch.rand(3, N // 2) if version == 2 else torch.ones(3, N // 2)
    y, scale = torch.zeros(6, N // 2, dtype=torch.int8), torch.zeros(6)
    for row, group in enumerate([0, 0, 2, 2, 2]):  # the last row belongs to nobody
        c = (x[row].long() @ weight[group].long()).double() * w_scale[group].double() * float(x_scale[row])
        values, scale[row] = quantized_swiglu(c, smooth[group].double())
        y[row] = values

    def one(x, weight, w_scale, x_scale, groups):
        return torch_npu.npu_grouped_matmul_swiglu_quant(x, weight, groups, w_scale, x_scale)[:2]

    def two(x, weight, w_scale, x_scale, groups, smooth):
        return torch_npu.npu_grouped_matmul_swiglu_quant_v2(
            x, [weight], [w_scale], x_scale, groups, smooth_scale=smooth, group_list_type=kind
        )

    args = [x, weight, w_scale, x_scale, groups_of(sizes, kind)]
    modes = ("eager", "static") if kind else ("eager",)
    check(*((one, args) if version == 1 else (two, [*args, smooth])), [y, scale], modes=modes, rtol=1e-5)


def bits(scale: torch.Tensor) -> torch.Tensor:
    """float32 in the low halves of int64."""
    return scale.view(torch.int32).long() & 0xFFFFFFFF


def test_grouped_matmul_swiglu_quant_of_int4():
    torch.manual_seed(3)
    width = 64  # one block of NZ
    x, weight, x_scale = int8(4, 32), torch.randint(-8, 8, (2, 32, width)), torch.rand(4) / 20
    w_scale = torch.rand(2, 2, width) / 20  # two groups of K
    assist = torch.stack([sum(8 * w_scale[e, k // 16] * weight[e, k] for k in range(32)) for e in range(2)])
    y, scale = torch.empty(4, width // 2, dtype=torch.int8), torch.empty(4)
    for row, group in enumerate([0, 1, 1, 1]):
        c = torch.zeros(width, dtype=torch.float64)
        for k in range(32):
            c += int(x[row, k]) * weight[group, k].double() * w_scale[group, k // 16].double()
        y[row], scale[row] = quantized_swiglu(c * float(x_scale[row]), torch.ones(width // 2))
    args = (packed(weight).npu(), bits(w_scale).npu(), assist.npu())
    found = torch_npu.npu_grouped_matmul_swiglu_quant_v2(
        x.npu(),
        [args[0]],
        [args[1]],
        x_scale.npu(),
        torch.tensor([1, 4]).npu(),
        weight_assist_matrix=[args[2]],
        dequant_mode=1,
    )
    torch.testing.assert_close(found[0].cpu().float(), y.float(), atol=1.0, rtol=0)
    torch.testing.assert_close(found[1].cpu(), scale, rtol=1e-5, atol=0)
    blocks = packed(weight).view(2, 2, 16, 1, 8).permute(0, 3, 1, 2, 4).contiguous()  # the shape of NZ
    first = torch_npu.npu_grouped_matmul_swiglu_quant(
        x.npu(), blocks.npu(), torch.tensor([1, 4]).npu(), args[1], x_scale.npu(), bias=args[2]
    )
    assert torch.equal(first[0].cpu(), found[0].cpu()) and torch.equal(first[1].cpu(), found[1].cpu())


def test_int4_weights_of_int8_rows():
    """npu_quant_matmul, groups of K: the offset brings back what the 8 takes away."""
    torch.manual_seed(5)
    x, weight, token, scale = int8(3, 64), torch.randint(-8, 8, (64, N)), torch.rand(3, 1), torch.rand(2, N) / 20
    y = torch.zeros(3, N, dtype=torch.float64)
    offset = torch.zeros(N, dtype=torch.float64)
    for k in range(64):
        offset += 8 * scale[k // 32].double() * weight[k]
        for row in range(3):
            y[row] += int(x[row, k]) * weight[k].double() * scale[k // 32].double()

    def product(x, weight, scale, offset, token, sizes=(0, 0, 32)):
        return torch_npu.npu_quant_matmul(
            x, weight, scale, offset=offset, pertoken_scale=token, output_dtype=torch.bfloat16, group_sizes=sizes
        )

    args = [x, packed(weight), bits(scale), offset.float(), token]
    check(product, args, [(y * token).bfloat16()], modes=("eager",), rtol=2**-7, atol=2**-6)
    with pytest.raises(RuntimeError, match="with group_sizes 0, 0 and K / the rows of scale"):
        product(*(t.npu() for t in args), sizes=(0, 0, 16))


def test_weights_in_the_shape_of_nz():
    torch.manual_seed(9)
    x, weight, groups = int8(4, 48), int8(2, 48, 64), torch.tensor([1, 4])
    blocks = torch.empty(2, 2, 3, 16, 32, dtype=torch.int8)
    for k in range(48):
        for n in range(64):
            blocks[:, n // 32, k // 16, k % 16, n % 32] = weight[:, k, n]
    scales = [torch.rand(2, 64).npu(), torch.rand(4).npu()]
    found, wanted = (
        torch_npu.npu_grouped_matmul_swiglu_quant(x.npu(), w.npu(), groups.npu(), *scales) for w in (blocks, weight)
    )
    assert torch.equal(found[0].cpu(), wanted[0].cpu()) and torch.equal(found[1].cpu(), wanted[1].cpu())


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("shared", [False, True])
def test_grouped_matmul_finalize_routing(weights, shared):
    torch.manual_seed(4)
    x, token, logit = int8(6, 32), torch.rand(6) / 40, torch.rand(6)
    rows = torch.tensor([2, 0, 1, 2, 1, 0])
    weight = torch.randint(-8, 8, (E, 32, N)) if weights == "int4" else int8(E, 32, N)
    scale, extra = torch.rand(E, 1, N) / 20, torch.randn(E, N) if weights == "int4" else None
    zeros = torch.rand(E, 1, N) / 20 if weights == "int4" else None
    given = torch.randn(2, N).bfloat16() if shared else None
    expected = torch.zeros(3, N, dtype=torch.float64)
    for row, group in enumerate([0, 0, 0, 0, 1, 1]):
        moved = x[row].long() - 8 if weights == "int4" else x[row].long()
        v = (moved @ weight[group].long()).double() * scale[group, 0].double()
        if weights == "int4":
            v += extra[group].double() + int(x[row].long().sum()) * zeros[group, 0].double()
        expected[rows[row]] += v * float(token[row]) * float(logit[row])
    if shared:
        expected[1:3] += 0.5 * given.double()

    def routed(x, weight, groups, scale, extra, zeros, token, given, logit, rows):
        return torch_npu.npu_grouped_matmul_finalize_routing(
            x,
            weight,
            groups,
            scale=scale,
            bias=extra,
            offset=zeros,
            pertoken_scale=token,
            shared_input=given,
            logit=logit,
            row_index=rows,
            shared_input_weight=0.5,
            shared_input_offset=1,
            output_bs=3,
        )

    if weights == "int4":
        weight, scale = packed(weight), bits(scale)
    else:
        scale = scale[:, 0]
    args = [x, weight, torch.tensor([4, 2]), scale, extra, zeros, token, given, logit, rows]
    check(routed, args, [expected.float()], modes=("eager", "static") if shared else ("eager",), rtol=1e-5, atol=1e-4)


def activated(name: str, v: torch.Tensor) -> torch.Tensor:
    if name == "relu":
        return v.clamp_min(0)
    if name == "silu":
        return v / (1 + torch.exp(-v))
    if name == "fastgelu":
        return v / (1 + torch.exp(-1.702 * v))
    if name == "swiglu":
        left, right = v.chunk(2)
        return left * activated("silu", right)
    return 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "fastgelu", "swiglu"])
@pytest.mark.parametrize("form", ["plain", "index", "antiquant"])
def test_ffn(activation, form):
    torch.manual_seed(5)
    wide = 2 * N if activation == "swiglu" else N
    x, experts = torch.randn(5, 8).half(), E if form != "plain" else 1
    w1, w2 = torch.randn(experts, 8, wide).half(), torch.randn(experts, N, 8).half()
    s1, s2 = torch.rand(experts, wide).half() / 50, torch.rand(experts, 8).half() / 50
    o1, o2 = torch.randn(experts, wide).half(), torch.randn(experts, 8).half()
    b1, b2 = torch.randn(experts, wide).half(), torch.randn(experts, 8).half()
    if form == "antiquant":
        w1, w2 = int8(experts, 8, wide), int8(experts, N, 8)
    expected = torch.empty(5, 8)
    for row in range(5):
        e = int(row >= 2) if experts > 1 else 0
        m1, m2 = w1[e].double(), w2[e].double()
        if form == "antiquant":
            m1, m2 = (
                ((w[e].half() + o[e]) * s[e]).double() for w, o, s in ((w1, o1, s1), (w2, o2, s2))
            )  # steps in half
        expected[row] = activated(activation, x[row].double() @ m1 + b1[e].double()) @ m2 + b2[e].double()

    def network(x, w1, w2, b1, b2, s1, s2, o1, o2):
        quant = dict(antiquant_scale1=s1, antiquant_scale2=s2, antiquant_offset1=o1, antiquant_offset2=o2)
        tokens = {
            "plain": {},
            "index": dict(expert_tokens_index=[2, 5]),
            "antiquant": dict(expert_tokens=[2, 3], **quant),
        }
        return torch_npu.npu_ffn(x, w1, w2, activation, bias1=b1, bias2=b2, **tokens[form])

    args = [x, w1, w2, b1, b2, s1, s2, o1, o2]
    args = [x, *(a[0] for a in args[1:])] if form == "plain" else args
    modes = ("eager", "static") if activation == "gelu" else ("eager",)
    check(network, args, [expected.half()], modes=modes, rtol=2**-9, atol=2**-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ffn_of_int8(dtype):
    torch.manual_seed(6)
    x, w1, w2 = int8(5, 8), int8(8, N), int8(N, 8)
    d1, d2 = (torch.rand(N) / 3000).bfloat16(), (torch.rand(8) / 3000).bfloat16()
    b1, b2 = torch.randint(-99, 99, (N,), dtype=torch.int32), torch.randint(-99, 99, (8,), dtype=torch.int32)
    scale, offset = torch.tensor([30.0]), torch.tensor([3.0])
    expected = torch.empty(5, 8, dtype=dtype)
    for row in range(5):
        v = activated("relu", (x[row].long() @ w1.long() + b1).float() * d1.float()) * scale + offset
        v = v.round().clamp(-128, 127).long()
        expected[row] = (v @ w2.long() + b2).float() * d2.float()

    def network(x, w1, w2, b1, b2, scale, offset, d1, d2):
        return torch_npu.npu_ffn(
            x,
            w1,
            w2,
            "relu",
            bias1=b1,
            bias2=b2,
            scale=scale,
            offset=offset,
            deq_scale1=d1,
            deq_scale2=d2,
            output_dtype=dtype,
        )

    if dtype == torch.float16:  # packed, which keeps all bits of these
        d1, d2 = (torch_npu.npu_trans_quant_param(d.float().npu()).cpu() for d in (d1, d2))
    check(network, [x, w1, w2, b1, b2, scale, offset, d1, d2], [expected], modes=("eager", "static"))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_matmul_of_int4_weights(parts, transposed):
    torch.manual_seed(7)
    x, weight, groups = torch.randn(5, 16).half(), torch.randint(-8, 8, (E, 16, N)), torch.tensor([2, 5])
    scale, offset = (torch.rand(E, parts, N) / 5).half(), torch.randn(E, parts, N).half()
    expected = torch.empty(5, N, dtype=torch.float64)
    for row in range(5):
        e = int(row >= 2)
        for j in range(N):
            part = [k * parts // 16 for k in range(16)]
            expected[row, j] = sum(
                float(x[row, k]) * (int(weight[e, k, j]) + float(offset[e, part[k], j])) * float(scale[e, part[k], j])
                for k in range(16)
            )
    words = packed(weight.transpose(1, 2).contiguous()) if transposed else packed(weight)
    scale, offset = (scale, offset) if parts > 1 else (scale[:, 0], offset[:, 0])

    def product(x, words, scale, offset, groups):
        words = words.transpose(1, 2) if transposed else words
        return torch_npu.npu_grouped_matmul(
            [x],
            [words],
            antiquant_scale=[scale],
            antiquant_offset=[offset],
            group_list=groups,
            group_type=0,
            split_item=3,
        )[0]

    modes = ("eager",) if transposed else ("eager", "static")
    check(product, [x, words, scale, offset, groups], [expected.half()], modes=modes, rtol=2**-9, atol=2**-8)


@pytest.mark.parametrize("with_offset", [False, True])
def test_grouped_matmul_to_int8(with_offset):
    torch.manual_seed(8)
    x, weight, groups = int8(5, 32), int8(E, 32, N), torch.tensor([2, 5])
    bias, scale = torch.randint(-999, 999, (E, N), dtype=torch.int32), (torch.rand(E, N) / 900).bfloat16().float()
    shift = torch.randint(-20, 20, (E, N)).float() if with_offset else None
    expected = torch.empty(5, N, dtype=torch.int8)
    for row in range(5):
        e = int(row >= 2)
        sums = x[row].long() @ weight[e].long() + bias[e]
        for j in range(N):
            value = float(sums[j].float() * scale[e, j]) + (float(shift[e, j]) if with_offset else 0)
            expected[row, j] = max(-128, min(127, round(value)))
    params = [
        torch_npu.npu_trans_quant_param(scale[e].npu(), shift[e].npu() if with_offset else None) for e in range(E)
    ]

    def product(x, weight, scale, bias, groups):
        return torch_npu.npu_grouped_matmul(
            [x], [weight], scale=[scale], bias=[bias], group_list=groups, group_type=0, split_item=3
        )[0]

    modes = ("eager", "static") if with_offset else ("eager",)
    check(product, [x, weight, torch.stack(params).cpu(), bias, groups], [expected], modes=modes, atol=1.0)
    with pytest.raises(
        (ValueError, RuntimeError), match="output_dtype must be torch.int8 for int8 x with scale of int64"
    ):
        torch_npu.npu_grouped_matmul(
            [x.npu()],
            [weight.npu()],
            scale=[torch.stack(params)],
            group_list=groups.npu(),
            group_type=0,
            split_item=3,
            output_dtype=torch.float16,
        )


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("form", ["int4 rows", "int8 rows", "int8 rows, offset"])
def test_grouped_matmul_of_integers_by_int4(form, parts):
    """Rows of int4 and of int8, an empty group, and a row of nobody."""
    torch.manual_seed(9)
    rows, inner, groups, sizes, of_int4 = 6, 32, 3, [2, 0, 3], form == "int4 rows"
    with_offset = "offset" in form
    x = torch.randint(-8, 8, (rows, inner)) if of_int4 else int8(rows, inner)
    weight = torch.randint(-8, 8, (groups, inner, N))
    scale, tokens = torch.rand(groups, 1 if with_offset else parts, N) / 50, torch.rand(rows)
    offset = torch.randn(groups, 1, N) if with_offset else None
    bias = torch.zeros(groups, N)
    for e in range(groups):
        for k in range(inner):
            bias[e] += 8 * weight[e, k] * scale[e, k * scale.shape[1] // inner]
    dtype = torch.float16 if with_offset or parts == 1 else torch.bfloat16
    expected, row = torch.zeros(rows, N, dtype=torch.float64), 0
    for e, size in enumerate(sizes):
        for row in range(row, row + size):  # noqa: B020
            for k in range(inner):
                factor = scale[e, k * scale.shape[1] // inner].double()
                zero = offset[e, 0].double() if with_offset else 0.0
                expected[row] += int(x[row, k]) * (weight[e, k] * factor + zero) * float(tokens[row])
        row = row + 1 if size else row
    words = scale.view(torch.int32).long() & 0xFFFFFFFF
    given = packed(x) if of_int4 else x
    kind = 0 if of_int4 and parts == 2 else 1
    listed = torch.tensor(sizes) if kind else torch.tensor(sizes).cumsum(0)

    def product(x, weight, scale, tokens, bias, offset, groups):
        return torch_npu.npu_grouped_matmul(
            [x],
            [weight],
            scale=[scale],
            per_token_scale=[tokens],
            bias=None if of_int4 else [bias],
            offset=None if offset is None else [offset],
            group_list=groups,
            group_type=0,
            split_item=3,
            group_list_type=kind,
            output_dtype=dtype,
        )[0]

    args = [given, packed(weight), words[:, 0] if of_int4 and parts == 1 else words, tokens, bias, offset, listed]
    modes = ("eager", "static") if (parts == 2) == of_int4 else ("eager",)
    check(product, args, [expected.to(dtype)], modes=modes, rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(scale=None), "scale must be given"),
        (dict(bias=None), "bias must be given"),
        (dict(per_token_scale=None), "per_token_scale must be given"),
        (dict(output_dtype=None), "output_dtype must be torch.float16 or torch.bfloat16"),
        (dict(act_type=1), "act_type must be one of 0"),
        (dict(group_type=-1, split_item=0, group_list=None), "group_type must be 0"),
        (dict(scale=[torch.ones(E, 3, N, dtype=torch.int64)]), "scale must be of shape"),
        (dict(group_list=torch.tensor([5, 5])), "group_list must be non-negative sizes"),
    ],
)
def test_grouped_matmul_by_int4_refused(changed, message):
    given = dict(
        scale=[torch.ones(E, 1, N, dtype=torch.int64)],
        bias=[torch.ones(E, N)],
        per_token_scale=[torch.ones(M)],
        group_list=torch.tensor([1, 2]),
        group_type=0,
        split_item=3,
        group_list_type=1,
        output_dtype=torch.float16,
    )
    given.update(changed)
    on_device = {
        name: [t.npu() for t in value]
        if isinstance(value, list)
        else value.npu()
        if isinstance(value, torch.Tensor)
        else value
        for name, value in given.items()
    }
    words = torch.zeros(E, K, N // 8, dtype=torch.int32)
    with pytest.raises((ValueError, RuntimeError), match=message):
        torch_npu.npu_grouped_matmul([int8(M, K).npu()], [words.npu()], **on_device)


def test_grouped_matmul_swiglu_quant_of_int4_rows():
    need_torch(2, 13)  # the fake implementation of 2.8 fails on these types
    torch.manual_seed(4)
    x, weight, x_scale = torch.randint(-8, 8, (4, 32)), torch.randint(-8, 8, (E, 32, N)), torch.rand(4) / 10
    w_scale, smooth, ends = torch.rand(E, N) / 30, torch.rand(E, N // 2) + 0.5, torch.tensor([1, 3])
    y, scale = torch.zeros(4, N // 2, dtype=torch.int8), torch.zeros(4)
    for row, group in enumerate([0, 1, 1]):  # the last row belongs to nobody
        c = (x[row] @ weight[group]).double() * w_scale[group].double() * float(x_scale[row])
        values, scale[row] = quantized_swiglu(c, smooth[group].double())
        y[row] = values

    def swiglu(x, weight, w_scale, x_scale, groups, smooth):
        return torch_npu.npu_grouped_matmul_swiglu_quant_v2(
            x, [weight], [w_scale], x_scale, groups, smooth_scale=smooth
        )

    check(
        swiglu,
        [packed(x), packed(weight), w_scale, x_scale, ends, smooth],
        [y, scale],
        modes=("eager", "static"),
        rtol=1e-5,
    )
