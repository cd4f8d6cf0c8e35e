"""Products of float8, hifloat8 and float4 (Ascend 950) against loops over their blocks, eager and in graph mode."""

import pytest
import torch
import torch_npu

from everywhere import check, results
from moe_graph.foundation import compat
from versions import need_argument, need_operator, need_torch

FLOAT4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E8M0 = torch_npu.float8_e8m0fnu


@pytest.fixture(autouse=True)
def ascend_950(product, monkeypatch):
    product("950")
    monkeypatch.setattr(torch_npu.npu, "get_device_name", lambda *_: "Ascend950PR_9599")  # torchair asks for it


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantised(kind, *shape, seed=0):
    """Elements as torch_npu takes them, with the dimension of K last, and their values."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "float4":
        codes = torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)
        values = FLOAT4[(codes & 7).long()] * torch.where(codes > 7, -1.0, 1.0)
        return codes[..., ::2] | codes[..., 1::2] << 4, values
    if kind == "hifloat8":
        codes = torch_npu.npu_dtype_cast(random(*shape, seed=seed).npu(), torch_npu.hifloat8)
        return codes.cpu(), torch_npu.npu_dtype_cast(codes, torch.float32, torch_npu.hifloat8).cpu()
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "int8": torch.int8}[kind]
    x = (random(*shape, seed=seed) * (30 if kind == "int8" else 1)).to(dtype)
    return x, x.float()


def e8m0(*shape, seed=0):
    """Codes near that of 1 and what they stand for."""
    codes = torch.randint(124, 131, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return codes, 2.0 ** (codes.double() - 127)


NUMBERS = {"float4": torch_npu.float4_e2m1fn_x2, "hifloat8": torch_npu.hifloat8}


def blockwise(left, right, scale1, scale2):
    """sum over blocks of K of (left @ right) * scale1 * scale2, where scale1(i, block) and scale2(block, j) give the scales."""
    rows, inner, columns = *left.shape, right.shape[1]
    y = torch.zeros(rows, columns, dtype=torch.float64)
    size, first, second = scale1
    for i in range(rows):
        for j in range(columns):
            for start in range(0, inner, size):
                part = slice(start, start + size)
                y[i, j] += (left[i, part].double() @ right[part, j].double()) * first(i, start) * second(start, j)
    return y


@pytest.mark.parametrize("kinds", [("e4m3", "e5m2"), ("float4", "float4"), ("e4m3", "float4")])
@pytest.mark.parametrize("transposed", [False, True])
def test_mx(kinds, transposed):
    """Blocks of 32 with scales of float8_e8m0; K is no multiple of 64."""
    if kinds == ("e4m3", "float4") and not transposed:
        pytest.skip("the document has the weight transposed")
    rows, inner, columns = 3, 80, 6
    x1, left = quantised(kinds[0], rows, inner, seed=1)
    stored, right = quantised(kinds[1], *((columns, inner) if transposed else (inner, columns)), seed=2)
    codes1, factors1 = e8m0(rows, 2, 2, seed=3)
    codes2, factors2 = e8m0(*((columns, 2, 2) if transposed else (2, columns, 2)), seed=4)
    of_k = factors2 if not transposed else factors2.transpose(0, 1)
    y = blockwise(
        left,
        right.t() if transposed else right,
        (32, lambda i, at: factors1[i, at // 64, at // 32 % 2], lambda at, j: of_k[at // 64, j, at // 32 % 2]),
        None,
    )
    bias = random(columns, seed=5)

    def product(x1, weight, scale, token, bias):
        return torch_npu.npu_quant_matmul(
            x1,
            weight.t() if transposed else weight,
            scale.transpose(0, 1) if transposed else scale,
            pertoken_scale=token,
            bias=None if kinds == ("e4m3", "float4") else bias,
            output_dtype=torch.bfloat16,
            x1_dtype=NUMBERS.get(kinds[0]),
            x2_dtype=NUMBERS.get(kinds[1]),
            scale_dtype=E8M0,
            pertoken_scale_dtype=E8M0,
            group_sizes=[1, 1, 32],
        )

    wanted = y if kinds == ("e4m3", "float4") else y + bias
    modes = {"float4": ("eager", "static"), "e5m2": ("eager", "dynamic")}.get(
        kinds[1] if transposed else "", ("eager",)
    )
    check(product, [x1, stored, codes2, codes1, bias], [wanted.bfloat16()], modes=modes, rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize("kind, rows_of_block", [("e4m3", 1), ("hifloat8", 128), ("int8", 1)])
def test_blocks_of_128(kind, rows_of_block):
    rows, inner, columns = 130, 200, 140
    x1, left = quantised(kind, rows, inner, seed=1)
    x2, right = quantised(kind, inner, columns, seed=2)
    token = random(rows if rows_of_block == 1 else 2, 2, seed=3).abs() + 0.1
    scale = random(2, 2, seed=4).abs() + 0.1
    y = torch.zeros(rows, columns, dtype=torch.float64)
    for start in (0, 128):
        part = slice(start, start + 128)
        sums = left[:, part].double() @ right[part].double()
        for i in range(rows):
            for j in (0, 128):
                place = slice(j, j + 128)
                y[i, place] += (
                    sums[i, place] * token[i // rows_of_block, start // 128].double() * scale[start // 128, j // 128]
                )

    def product(x1, x2, scale, token):
        return torch_npu.npu_quant_matmul(
            x1,
            x2,
            scale,
            pertoken_scale=token,
            output_dtype=torch.float16,
            x1_dtype=NUMBERS.get(kind),
            x2_dtype=NUMBERS.get(kind),
            group_sizes=[rows_of_block, 128, 128],
        )

    modes = ("eager", "static") if kind == "hifloat8" else ("eager",)
    check(product, [x1, x2, scale, token], [y.half()], modes=modes, rtol=2**-10, atol=2**-8)


@pytest.mark.parametrize("kind", ["e5m2", "hifloat8"])
@pytest.mark.parametrize("form", ["channel and token", "one and one", "packed"])
def test_scales_of_rows_and_columns(kind, form):
    rows, inner, columns = 3, 20, 5
    x1, left = quantised(kind, rows, inner, seed=1)
    x2, right = quantised(kind, inner, columns, seed=2)
    scale = random(1 if form == "one and one" else columns, seed=3)
    token = None if form == "packed" else random(1 if form == "one and one" else rows, seed=4)
    bias = random(columns, seed=5)
    y = left.double() @ right.double()
    if form == "packed":
        scale = torch_npu.npu_trans_quant_param(scale.abs().npu()).cpu()
        factors = (
            torch.tensor([(w & 0xFFFFFFFF) for w in scale.tolist()], dtype=torch.int64)
            .to(torch.int32)
            .view(torch.float32)
        )
        y = (y + bias) * factors
    else:
        y = y * scale * token.unsqueeze(1) + bias

    def product(x1, x2, scale, token, bias):
        return torch_npu.npu_quant_matmul(
            x1,
            x2,
            scale,
            pertoken_scale=token,
            bias=bias,
            output_dtype=torch.float16,
            x1_dtype=NUMBERS.get(kind),
            x2_dtype=NUMBERS.get(kind),
        )

    modes = ("eager", "dynamic") if kind == "hifloat8" and form != "one and one" else ("eager",)
    check(product, [x1, x2, scale, token, bias], [y.half()], modes=modes, rtol=2**-9, atol=2**-9)


@pytest.mark.parametrize("kind", ["e4m3", "hifloat8"])
def test_products_added(kind):
    rows, inner, columns = 3, 80, 5
    x1, left = quantised(kind, inner, rows, seed=1)
    x2, right = quantised(kind, inner, columns, seed=2)
    y = random(rows, columns, seed=5)
    if kind == "e4m3":
        (codes1, factors1), (codes2, factors2) = e8m0(2, rows, 2, seed=3), e8m0(2, columns, 2, seed=4)
        scales = lambda i, at: factors1[at // 64, i, at // 32 % 2], lambda at, j: factors2[at // 64, j, at // 32 % 2]  # noqa: E731
        expected = y + blockwise(left.t(), right, (32, *scales), None)
    else:
        codes1, codes2 = random(1, seed=3), random(1, seed=4)
        expected = y + left.t().double() @ right.double() * codes1 * codes2
    number = NUMBERS.get(kind)
    given = dict(x1_dtype=number, x2_dtype=number, x1_scale_dtype=E8M0, x2_scale_dtype=E8M0)
    given = {
        name: value for name, value in given.items() if value is not None and (kind == "e4m3" or "scale" not in name)
    }

    def added(y, x1, x2, scale1, scale2):
        scale1 = scale1.transpose(0, 1) if kind == "e4m3" else scale1
        return torch_npu.npu_add_quant_matmul_(y, x1.t(), x2, scale2, x1_scale=scale1, **given)

    def copied(y, x1, x2, scale1, scale2):
        scale1 = scale1.transpose(0, 1) if kind == "e4m3" else scale1
        return torch_npu.npu_add_quant_matmul(y, x1.t(), x2, scale2, x1_scale=scale1, **given)

    args, wanted = [y, x1, x2, codes1, codes2], expected.float()
    check(added, args, [wanted, wanted], modes=("eager", "static"), rtol=1e-5, atol=1e-5)
    # torchair of 2.8 lowers the copying form to the other one.
    in_graph = kind == "e4m3" and compat.TORCH >= (2, 13)
    check(copied, args, [wanted, y], modes=("eager", "dynamic") if in_graph else ("eager",), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["e4m3", "hifloat8"])
@pytest.mark.parametrize("sizes", [[0, 40, 0, 70], [64, 32, 1, 3]])
def test_grouped_products_added(kind, sizes):
    """Groups along K that are empty, that begin inside of a pair of blocks, and rows behind the last."""
    rows, inner, columns, groups = 3, 130, 5, len(sizes)
    x1, left = quantised(kind, inner, rows, seed=1)
    x2, right = quantised(kind, inner, columns, seed=2)
    y, is_mx, number = random(groups, rows, columns, seed=5), kind == "e4m3", NUMBERS.get(kind)
    if is_mx:
        (scale1, factors1), (scale2, factors2) = (e8m0(130 // 64 + groups, n, 2, seed=n) for n in (rows, columns))
    else:
        scale1, scale2 = random(groups, seed=3), random(groups, columns, seed=4)
    expected, start = y.double().clone(), 0
    for group, size in enumerate(sizes):
        for k in range(start, start + size):
            product = torch.outer(left[k], right[k]).double()
            if is_mx:
                place, half = start // 64 + group + (k - start) // 64, (k - start) // 32 % 2
                product *= torch.outer(factors1[place, :, half], factors2[place, :, half])
            else:
                product *= scale1[group].double() * scale2[group].double()
            expected[group] += product
        start += size
    given = {
        f"x{n}{part}_dtype": value
        for n in (1, 2)
        for part, value in (("", number), ("_scale", E8M0 if is_mx else None))
    }
    kind_of_list = 1 if sizes[0] else 0
    groups_given = torch.tensor(sizes) if kind_of_list else torch.tensor(sizes).cumsum(0)

    def added(y, x1, x2, scale1, scale2, groups):
        return torch_npu.npu_add_quant_gmm_(
            y, x1.t(), x2, scale2, groups, x1_scale=scale1, group_list_type=kind_of_list, **given
        )

    def copied(y, x1, x2, scale1, scale2, groups):
        return torch_npu.npu_add_quant_gmm(
            y, x1.t(), x2, scale2, groups, x1_scale=scale1, group_list_type=kind_of_list, **given
        )

    need_operator("npu_add_quant_gmm")
    args, wanted = [y, x1, x2, scale1, scale2, groups_given], expected.float()
    modes = ("eager", "static") if is_mx == bool(kind_of_list) else ("eager",)
    check(added, args, [wanted, wanted], modes=modes, rtol=1e-5, atol=1e-5)
    check(
        copied,
        args,
        [wanted, y],
        modes=("eager", "dynamic") if modes[1:] and is_mx else ("eager",),
        rtol=1e-5,
        atol=1e-5,
    )


def rounded_to_blocks(values):
    """npu_dynamic_mx_quant of float32 values, which a test of its own holds to its document."""
    whole = torch.cat((values, torch.zeros(len(values), -values.shape[1] % 32)), 1).view(len(values), -1, 32)
    largest = whole.abs().amax(-1)
    exponent = torch.where(largest > 0, largest.log2().floor() - 8, torch.tensor(-127.0))
    y = (whole / 2.0 ** exponent.unsqueeze(-1)).clamp(-448, 448).to(torch.float8_e4m3fn)
    codes = torch.zeros(len(values), 2 * -(-values.shape[1] // 64), dtype=torch.uint8)
    codes[:, : exponent.shape[1]] = (exponent + 127).to(torch.uint8)
    return y.flatten(1)[:, : values.shape[1]], codes.view(len(values), -1, 2)


@pytest.mark.parametrize("kind", ["e4m3", "float4", "separate", "per token"])
def test_grouped_swiglu(kind):
    """Two groups of rows, one of them empty, and a row of nobody."""
    rows, inner, width, ends = 5, 80, 128, [0, 4]
    of = {"float4": "float4"}.get(kind, "e4m3")
    x, left = quantised(of, rows, inner, seed=1)
    weight, right = quantised(of, 2, inner, width, seed=2)
    groups = torch.tensor(ends)
    if kind == "per token":
        token, factors = random(rows, seed=3).abs(), random(2, width, seed=4).abs()
        c = left.double() @ right[1].double() * token.unsqueeze(1) * factors[1]
    else:
        (token, of_token), (factors, of_weight) = e8m0(rows, 2, 2, seed=3), e8m0(2, 2, width, 2, seed=4)
        c = torch.zeros(rows, width, dtype=torch.float64)
        for start in range(0, inner, 32):
            part, at = slice(start, start + 32), (start // 64, start // 32 % 2)
            c += (
                (left[:, part].double() @ right[1][part].double())
                * of_token[:, at[0], at[1], None]
                * of_weight[1, at[0], :, at[1]]
            )
    s = (c[:, :64] / (1 + torch.exp(-c[:, :64])) * c[:, 64:]).float()
    s[4:] = 0
    if kind == "per token":
        scale = s.abs().amax(1) / 448
        y = (s / scale.masked_fill(scale == 0, 1).unsqueeze(1)).to(torch.float8_e4m3fn)
    else:
        y, scale = rounded_to_blocks(s)
    number = NUMBERS.get(of)

    def product(x, weight, factors, token, groups):
        mode = 0 if kind == "per token" else 2
        e8m0_dtype = None if kind == "per token" else E8M0
        weights, scales = ([*weight], [*factors]) if kind == "separate" else ([weight], [factors])
        found = torch_npu.npu_grouped_matmul_swiglu_quant_v2(
            x,
            weights,
            scales,
            token,
            groups,
            dequant_mode=mode,
            quant_mode=mode,
            quant_dtype=torch.float8_e4m3fn,
            x_dtype=number,
            weight_dtype=number,
            weight_scale_dtype=e8m0_dtype,
            x_scale_dtype=e8m0_dtype,
        )
        return found[0].to(torch.float32), found[1].view(torch.uint8) if mode else found[1]

    found_y, found_scale = (t.cpu() for t in product(*(a.npu() for a in (x, weight, factors, token, groups))))
    wrong = found_y != y.float()
    assert wrong.sum() <= 2 and torch.allclose(
        found_y, y.float(), rtol=2**-3
    )  # float32 sums may fall to the other side of a half
    torch.testing.assert_close(found_scale, scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["e4m3", "float4", "per token"])
def test_grouped_swiglu_in_a_graph(kind):
    need_torch(2, 13)  # the fake implementation of 2.8 fails on these types
    of = {"float4": "float4"}.get(kind, "e4m3")
    x, _ = quantised(of, 5, 80, seed=1)
    weight, _ = quantised(of, 2, 80, 128, seed=2)
    is_mx, number = kind != "per token", NUMBERS.get(of)
    token = e8m0(5, 2, 2, seed=3)[0] if is_mx else random(5, seed=3).abs()
    factors = e8m0(2, 2, 128, 2, seed=4)[0] if is_mx else random(2, 128, seed=4).abs()

    def product(x, weight, factors, token, groups):
        return torch_npu.npu_grouped_matmul_swiglu_quant_v2(
            x,
            [weight],
            [factors],
            token,
            groups,
            dequant_mode=2 if is_mx else 0,
            quant_mode=2 if is_mx else 0,
            quant_dtype=torch.float8_e5m2,
            x_dtype=number,
            weight_dtype=number,
            weight_scale_dtype=E8M0 if is_mx else None,
            x_scale_dtype=E8M0 if is_mx else None,
        )

    args = [x, weight, factors, token, torch.tensor([2, 5])]
    found = results(product, args, modes=("eager", "dynamic" if kind == "float4" else "static"))
    eager, graph = found.values()
    for one, other in zip(eager[:2], graph[:2]):
        assert one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("kind", ["e4m3", "float4", "float4 transposed", "mixed", "per token", "packed", "hifloat8"])
def test_grouped(kind):
    """Two groups of rows, one of them empty, and a row of nobody."""
    rows, inner, width, ends = 5, 80, 6, [0, 4]
    of = {"float4": "float4", "float4 transposed": "float4", "hifloat8": "hifloat8"}.get(kind, "e4m3")
    transposed, mixed = kind in ("float4 transposed", "mixed"), kind == "mixed"
    x, left = quantised(of, rows, inner, seed=1)
    weight, right = quantised(
        "float4" if mixed else of, *((2, width, inner) if transposed else (2, inner, width)), seed=2
    )
    right = right.transpose(1, 2) if transposed else right
    if kind in ("per token", "packed", "hifloat8"):
        factors = random(2, width, seed=4).abs()
        token = None if kind == "packed" else random(rows, seed=3).abs()
        y = left.double() @ right[1].double() * factors[1] * (1 if token is None else token.unsqueeze(1))
        if kind == "packed":
            factors = torch_npu.npu_trans_quant_param(factors.npu()).cpu()
    else:
        (token, of_token), (factors, of_weight) = e8m0(rows, 2, 2, seed=3), e8m0(2, 2, width, 2, seed=4)
        y = torch.zeros(rows, width, dtype=torch.float64)
        for start in range(0, inner, 32):
            part, at = slice(start, start + 32), (start // 64, start // 32 % 2)
            y += (
                (left[:, part].double() @ right[1][part].double())
                * of_token[:, at[0], at[1], None]
                * of_weight[1, at[0], :, at[1]]
            )
    y[4:] = 0
    number, is_mx = NUMBERS.get(of), kind in ("e4m3", "float4", "float4 transposed", "mixed")

    def product(x, weight, factors, token, groups):
        return torch_npu.npu_grouped_matmul(
            [x],
            [weight.transpose(1, 2) if transposed else weight],
            scale=None if mixed else [factors],
            antiquant_scale=[factors] if mixed else None,
            per_token_scale=None if token is None else [token],
            group_list=groups,
            split_item=3,
            group_type=0,
            output_dtype=torch.bfloat16,
            x_dtype=number,
            weight_dtype=torch_npu.float4_e2m1fn_x2 if mixed else number,
            scale_dtype=E8M0 if is_mx and not mixed else None,
            per_token_scale_dtype=E8M0 if is_mx else None,
        )[0]

    modes = {"e4m3": ("eager", "static"), "float4": ("eager", "dynamic"), "per token": ("eager", "static")}.get(
        kind, ("eager",)
    )
    rtol = 2**-6 if kind == "packed" else 2**-7
    check(product, [x, weight, factors, token, torch.tensor(ends)], [y.bfloat16()], modes=modes, rtol=rtol, atol=2**-9)


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_packed_as_float4(transposed):
    """Eight float4 in a float32, scales of blocks of 32 rows; values are cut after one bit of the mantissa."""
    x, bias = random(3, 64, seed=1).half(), random(8, seed=2).half()
    _, given = quantised("float4", *((8, 64) if transposed else (64, 8)), seed=3)
    given.view(-1)[:3] = torch.tensor([0.3, -1.25, 7.0])
    values = given.clone()
    values.view(-1)[:3] = torch.tensor([0.0, -1.0, 6.0])  # 0.25 is no value of the type
    codes, factors = e8m0(2, 8, seed=4)
    matrix = values.t() if transposed else values
    y = torch.zeros(3, 8, dtype=torch.float64) + bias
    for k in range(64):
        y += torch.outer(x[:, k].double(), matrix[k].double() * factors[k // 32])

    packed = torch_npu.npu_convert_weight_to_int4pack(given.npu()).cpu()
    assert packed.dtype == torch.float32 and packed.shape == (given.shape[0], given.shape[1] // 8)

    def multiplied(x, weight, codes, bias):
        weight = weight.t() if transposed else weight
        return torch_npu.npu_weight_quant_batchmatmul(x, weight, codes, bias=bias, antiquant_group_size=32)

    check(multiplied, [x, packed, codes, bias], [y.half()], modes=("eager", "static"), rtol=2**-9, atol=2**-9)


def test_weight_quant_preprocess():
    need_operator("npu_weight_quant_preprocess")
    weight = torch.randint(0, 256, (2, 6, 32), dtype=torch.uint8).transpose(1, 2)
    codes = e8m0(2, 6, 1, 2)[0].transpose(1, 2)
    types = dict(x_dtype=torch.float8_e4m3fn, weight_dtype=torch_npu.float4_e2m1fn_x2, x_scale_dtype=E8M0)
    found = torch_npu.npu_weight_quant_preprocess(weight.npu(), codes.npu(), weight_scale_dtype=E8M0, **types)
    for result, given in zip(found, (weight, codes)):
        assert torch.equal(result.cpu(), given) and result.stride() == given.stride()
    with pytest.raises(RuntimeError, match="weight must be of 3 dimensions and transposed in memory"):
        torch_npu.npu_weight_quant_preprocess(weight.contiguous().npu(), codes.npu(), weight_scale_dtype=E8M0, **types)


@pytest.mark.parametrize("kinds", [("e4m3", "e5m2"), ("float4", "float4"), ("transposed", "float4")])
def test_finalize_routing(kinds):
    """MX: two experts' rows, each times its logit added to its token, and the shared expert's rows."""
    transposed, of = kinds[0] == "transposed", [kinds[-1] if kind == "transposed" else kind for kind in kinds]
    rows, inner, width, groups, index = 5, 80, 6, [0, 0, 0, 1, 1], [1, 0, 2, 2, 1]
    x, left = quantised(of[0], rows, inner, seed=1)
    weight, right = quantised(of[1], *((2, width, inner) if transposed else (2, inner, width)), seed=2)
    right = right.transpose(1, 2) if transposed else right
    (token, of_token), (factors, of_weight) = e8m0(rows, 2, 2, seed=3), e8m0(2, 2, width, 2, seed=4)
    bias, logit, shared = random(2, width, seed=5).bfloat16(), random(rows, seed=6), random(2, width, seed=7).bfloat16()
    y = torch.zeros(3, width, dtype=torch.float64)
    for row, (group, to) in enumerate(zip(groups, index)):
        for column in range(width):
            total = float(bias[group, column])
            for k in range(inner):
                at = k // 64, k // 32 % 2
                scale = float(of_token[row, at[0], at[1]] * of_weight[group, at[0], column, at[1]])
                total += float(left[row, k] * right[group, k, column]) * scale
            y[to, column] += total * float(logit[row])
    y[1:] += 0.5 * shared.double()
    numbers = [NUMBERS.get(kind) for kind in of]

    def routed(x, weight, sizes, factors, bias, token, shared, logit, index):
        return torch_npu.npu_grouped_matmul_finalize_routing(
            x,
            weight.transpose(1, 2) if transposed else weight,
            sizes,
            scale=factors,
            bias=bias,
            pertoken_scale=token,
            shared_input=shared,
            logit=logit,
            row_index=index,
            shared_input_weight=0.5,
            shared_input_offset=1,
            output_bs=3,
            x_dtype=numbers[0],
            w_dtype=numbers[1],
            scale_dtype=E8M0,
            pertoken_scale_dtype=E8M0,
        )

    args = [x, weight, torch.tensor([3, 2]), factors, bias, token, shared, logit, torch.tensor(index)]
    modes = ("eager",) if transposed else ("eager", "static" if of[0] == "float4" else "dynamic")
    check(routed, args, [y.float()], modes=modes, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["K-C", "MX", "MX turned", "T-C", "T-C to hifloat8"])
def test_transposed_batches(kind):
    need_argument(torch.ops.npu.npu_transpose_quant_batchmatmul.default, "x1_dtype")
    rows, batch, inner, columns = (2, 3, 512, 128) if kind == "K-C" else (2, 3, 128, 5)
    turned, of = kind == "MX turned", "hifloat8" if "T-C" in kind else "e4m3"
    number = NUMBERS.get(of)
    x1, left = quantised(of, rows, batch, inner, seed=1)
    x2, right = quantised(of, *((batch, columns, inner) if turned else (batch, inner, columns)), seed=2)
    right = right.transpose(1, 2) if turned else right
    sizes = None
    if "MX" in kind:
        codes1, factors1 = e8m0(rows, batch, 2, 2, seed=3)
        codes2, factors2 = e8m0(*((batch, columns, 2, 2) if turned else (batch, 2, columns, 2)), seed=4)
        of_k = factors2.transpose(1, 2) if turned else factors2
        scales, sizes = [codes.view(torch.float8_e8m0fnu) for codes in (codes1, codes2)], [0, 1, 32]
    else:
        scales = [random(1 if of == "hifloat8" else rows, seed=3), random(columns, seed=4)]
        factors = list(scales)
        if of == "hifloat8":
            scales[1] = torch_npu.npu_trans_quant_param(scales[1].npu()).cpu()
            factors[1] = (scales[1] & 0xFFFFFFFF).to(torch.int32).view(torch.float32)
    y = torch.zeros(rows, batch, columns, dtype=torch.float64)
    for m in range(rows):
        for b in range(batch):
            for start in range(0, inner, 32):
                part, at = slice(start, start + 32), (start // 64, start // 32 % 2)
                product = left[m, b, part].double() @ right[b, part].double()
                if "MX" in kind:
                    product *= factors1[m, b, at[0], at[1]] * of_k[b, at[0], :, at[1]]
                else:
                    product *= factors[0][m if of == "e4m3" else 0].double() * factors[1].double()
                y[m, b] += product
    dtype = torch_npu.hifloat8 if "to" in kind.split() else torch.bfloat16

    def product(x1, x2, scale1, scale2):
        return torch_npu.npu_transpose_quant_batchmatmul(
            x1,
            x2,
            dtype=dtype,
            x1_scale=scale1,
            x2_scale=scale2,
            group_sizes=sizes,
            perm_x1=[1, 0, 2],
            perm_x2=[0, 2, 1] if turned else [0, 1, 2],
            perm_y=[1, 0, 2],
            x1_dtype=number,
            x2_dtype=number,
        )

    modes = {"K-C": ("eager", "static"), "MX turned": ("eager", "dynamic"), "T-C to hifloat8": ("eager", "static")}
    if dtype is torch.bfloat16:
        wanted, tolerance = y.bfloat16(), dict(rtol=2**-7, atol=2**-7)
    else:  # the nearest of all values, as the table of codes has them
        codes = torch.arange(256, dtype=torch.uint8)
        values = torch_npu.npu_dtype_cast(codes.npu(), torch.float32, torch_npu.hifloat8).cpu().double().nan_to_num(1e9)
        wanted, tolerance = codes[(y.unsqueeze(-1) - values).abs().argmin(-1)], {}
    check(product, [x1, x2, *scales], [wanted], modes=modes.get(kind, ("eager",)), **tolerance)


def test_transposed_batches_refused(product):
    x1, x2 = torch.ones(2, 3, 64).to(torch.float8_e4m3fn).npu(), torch.ones(3, 64, 5).to(torch.float8_e4m3fn).npu()
    for given, message in (
        (dict(), "x2_scale must be given"),
        (dict(x2_scale=torch.ones(5).npu()), "x2 must be of K = 512 and N = 128"),
        (dict(perm_y=[0, 1, 2]), r"perm_y must be one of \[1, 0, 2\]"),
        (dict(bias=torch.ones(5).npu()), "bias must be None"),
        (dict(batch_split_factor=3), "batch_split_factor must be one of None, 1"),
        (dict(x2_scale=torch.ones(5).npu(), group_sizes=[1, 1, 32]), "group_sizes must be None or 0"),
        (dict(dtype=torch.float32), "dtype must be float16, bfloat16 or torch_npu.hifloat8"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch_npu.npu_transpose_quant_batchmatmul(x1, x2, **{"dtype": torch.float16, **given})
    product("A3")
    with pytest.raises(RuntimeError, match="only Ascend 950 has it"):
        torch_npu.npu_transpose_quant_batchmatmul(x1, x2, torch.float16, x2_scale=torch.ones(5).npu())


def test_integers_on_ascend_950():
    """torchair lowers them to QuantBatchMatmulV4 there."""
    x1, left = quantised("int8", 3, 20, seed=1)
    x2, right = quantised("int8", 20, 5, seed=2)
    scale = random(5, seed=3).abs()
    y = (left.double() @ right.double() * scale).bfloat16()

    def product(x1, x2, scale):
        return torch_npu.npu_quant_matmul(x1, x2, scale, output_dtype=torch.bfloat16)

    check(product, [x1, x2, scale], [y], modes=("eager", "static"), rtol=2**-7)


def test_refusals(product):
    x1, x2, scale = (torch.ones(size).npu() for size in ((3, 4), (4, 5), (5,)))
    x1, x2 = x1.to(torch.float8_e4m3fn), x2.to(torch.float8_e4m3fn)
    for given, message in (
        (dict(output_dtype=torch.int8), "output_dtype must be one of"),
        (
            dict(output_dtype=torch.float16, group_sizes=[1, 64, 64], pertoken_scale=torch.ones(3, 1).npu()),
            "group_sizes must be one of",
        ),
        (
            dict(output_dtype=torch.float16, group_sizes=[1, 128, 128]),
            "group_sizes must be 0 or None without scales of blocks",
        ),
        (dict(output_dtype=torch.float16, y_scale=scale), "y_scale must be None"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch_npu.npu_quant_matmul(x1, x2, scale, **given)
    product("A2")
    with pytest.raises(RuntimeError, match="only Ascend 950 has it, the product is A2"):
        torch_npu.npu_quant_matmul(x1, x2, scale, output_dtype=torch.float16)
