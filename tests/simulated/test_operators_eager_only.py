"""Operators without a converter in torchair, on NPU tensors, against loops from their documents."""

import math

import numpy as np
import pytest
import torch
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhere import check
from versions import need_operator, need_torch


@pytest.mark.parametrize("with_k", [False, True])
@pytest.mark.parametrize("with_p", [False, True])
def test_top_k_top_p(with_k, with_p):
    torch.manual_seed(0)
    logits = torch.randn(4, 12)
    logits[0, 3] = logits[0, 7]
    p, k = (torch.tensor([0.0, 0.4, 0.9, 1.0]) if with_p else None), (torch.tensor([1, 3, 6, 12]) if with_k else None)
    expected = torch.full((4, 12), -torch.inf)
    for row in range(4):
        order = sorted(range(12), key=lambda i: (float(logits[row, i]), i))
        least = float(logits[row, order[12 - int(k[row])]]) if with_k else -torch.inf
        kept = [i for i in order if float(logits[row, i]) >= least]
        weights = torch.softmax(logits[row, kept].double(), 0)
        reached = 0.0
        for at, i in enumerate(kept):
            reached += float(weights[at])
            if not with_p or reached > 1 - float(p[row]) + 1e-7 or at == len(kept) - 1:
                expected[row, i] = logits[row, i]
    found = torch_npu.npu_top_k_top_p(logits.npu(), p.npu() if with_p else None, k.int().npu() if with_k else None)
    assert torch.equal(found.cpu(), expected)
    if with_k:
        with pytest.raises((ValueError, RuntimeError), match="k must be from 1 to V = 12"):
            torch_npu.npu_top_k_top_p(logits.npu(), None, (k - 1).int().npu())


@pytest.mark.parametrize("form", ["one kind", "default", "four", "interleave"])
@pytest.mark.parametrize("mode", ["half", "interleaved"])
def test_mrope(form, mode):
    torch.manual_seed(1)
    sections = {"one kind": None, "default": [2, 3, 3], "four": [2, 2, 2, 2], "interleave": [2, 3, 3]}[form]
    cache, query, key = torch.randn(20, 16).half(), torch.randn(3, 2 * 24).half(), torch.randn(3, 24).half()
    positions = torch.randint(0, 20, (3,) if sections is None else (len(sections), 3))

    def turned(x):
        y = x.float().clone().view(3, -1, 24)
        for t in range(3):
            for pair in range(8):
                kind = 0
                if form in ("default", "four"):
                    kind = next(i for i in range(len(sections)) if pair < sum(sections[: i + 1]))
                elif form == "interleave":
                    kind = pair % 3 if pair < 9 else 0
                at = positions[t] if sections is None else positions[kind, t]
                cos, sin = cache[at, pair].float(), cache[at, 8 + pair].float()
                one, two = (pair, pair + 8) if mode == "half" else (2 * pair, 2 * pair + 1)
                for head in range(y.shape[1]):
                    a, b = x.view(3, -1, 24)[t, head, one].float(), x.view(3, -1, 24)[t, head, two].float()
                    y[t, head, one], y[t, head, two] = a * cos - b * sin, b * cos + a * sin
        return y.view(x.shape).half()

    def operator(positions, query, key, cache):
        way = "interleave" if form == "interleave" else "default"
        return torch_npu.npu_mrope(
            positions, query, key, cache, 24, mrope_section=sections, rotary_mode=mode, cache_mode=way
        )

    expected = [turned(query), turned(key)]
    check(operator, [positions, query, key, cache], expected, modes=("eager",), rtol=2**-10, atol=2**-10)


def test_layer_norm_eval_and_deep_norm():
    torch.manual_seed(2)
    x, gx, gamma, beta = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.randn(2, 4), torch.randn(2, 4)
    y, mean, rstd, plain = torch.empty(3, 2, 4), torch.empty(3, 1, 1), torch.empty(3, 1, 1), torch.empty(3, 2, 4)
    for row in range(3):
        v = 0.5 * x[row].double() + gx[row].double()
        mean[row], rstd[row] = v.mean(), 1 / torch.sqrt(v.var(unbiased=False) + 1e-6)
        y[row] = (v - v.mean()) / torch.sqrt(v.var(unbiased=False) + 1e-6) * gamma + beta
        w = x[row].double()
        plain[row] = (w - w.mean()) / torch.sqrt(w.var(unbiased=False) + 1e-3) * gamma + beta
    args = [x, gx, beta, gamma, 0.5, 1e-6]
    check(torch_npu.npu_deep_norm, args, [mean, rstd, y], modes=("eager",), rtol=1e-5, atol=1e-5)
    args = [x, [2, 4], gamma, beta, 1e-3]
    check(torch_npu.npu_layer_norm_eval, args, [plain], modes=("eager",), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("with_probs", [False, True])
def test_tokens_by_a_routing_map_and_back(pad, with_probs):
    torch.manual_seed(3)
    routing = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    tokens = torch.randn(4, 5, dtype=torch.float64).float()
    probs = torch.rand(4, 3) if with_probs else None
    rows = []  # (token, expert)
    for expert in range(3):
        own = [t for t in range(4) if routing[t, expert]]
        others = [t for t in range(4) if not routing[t, expert]]
        rows += [(t, expert) for t in ((own + others)[:2] if pad else own)]
    permuted = torch.stack([tokens[t] for t, _ in rows])
    of_rows = torch.stack([probs[t, e] for t, e in rows]) if with_probs else None
    by_token = sorted(range(len(rows)), key=lambda r: rows[r])
    indices = [t for t, _ in rows] if pad else by_token
    given = probs.npu() if with_probs else None
    found = torch_npu.npu_moe_token_permute_with_routing_map(
        tokens.npu(), routing.npu(), probs=given, num_out_tokens=6 if pad else 8, drop_and_pad=pad
    )
    assert torch.equal(found[0].cpu(), permuted) and found[2].cpu().tolist() == indices
    if with_probs:
        assert torch.equal(found[1].cpu(), of_rows)
    expected = torch.zeros(4, 5)
    for row, (t, e) in enumerate(rows):
        expected[t] += permuted[row] * (probs[t, e] if with_probs else 1)
    back = torch_npu.npu_moe_token_unpermute_with_routing_map(
        found[0], found[2], [4, 5], probs=given, routing_map=routing.npu(), drop_and_pad=pad
    )
    torch.testing.assert_close(back.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pad", [False, True])
def test_gradients_of_both_ways(pad):
    torch.manual_seed(4)
    routing = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    tokens, probs = torch.randn(4, 5).npu().requires_grad_(), torch.rand(4, 3).npu().requires_grad_()
    weights = torch.randn(4, 5)
    rows, _, indices = torch_npu.npu_moe_token_permute_with_routing_map(
        tokens, routing.npu(), num_out_tokens=6 if pad else 8, drop_and_pad=pad
    )
    back = torch_npu.npu_moe_token_unpermute_with_routing_map(
        rows, indices, [4, 5], probs=probs, routing_map=routing.npu(), drop_and_pad=pad
    )
    (back * weights.npu()).sum().backward()
    # Both ways together: each token times the sum of its probs.
    kept = torch.zeros(4, 3)
    for expert in range(3):
        own = [t for t in range(4) if routing[t, expert]] + [t for t in range(4) if not routing[t, expert]]
        for t in own[:2] if pad else [t for t in range(4) if routing[t, expert]]:
            kept[t, expert] = 1
    values = probs.detach().cpu()
    torch.testing.assert_close(tokens.grad.cpu(), weights * (kept * values).sum(1, keepdim=True), rtol=1e-5, atol=1e-6)
    expected = kept * (weights * tokens.detach().cpu()).sum(1, keepdim=True)
    torch.testing.assert_close(probs.grad.cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("renorm", [0, 1])
@pytest.mark.parametrize("output", [False, True])
def test_moe_gating_top_k_softmax_v2(renorm, output):
    torch.manual_seed(5)
    x, finished = torch.randn(2, 3, 6).half(), torch.tensor([[True, False, False], [False, True, False]])
    y, experts, scores = torch.empty(2, 3, 2), torch.empty(2, 3, 2, dtype=torch.int32), torch.empty(2, 3, 6)
    for b in range(2):
        for s in range(3):
            row = x[b, s].float()
            scores[b, s] = torch.exp(row) / torch.exp(row).sum()
            order = sorted(range(6), key=lambda e: -float(row[e]))[:2]
            chosen = torch.exp(row[order]) if renorm else scores[b, s][order]
            y[b, s] = chosen / chosen.sum() if renorm else chosen
            experts[b, s] = torch.tensor([6, 6] if finished[b, s] else order)

    found = torch_npu.npu_moe_gating_top_k_softmax_v2(
        x.npu(), k=2, finished=finished.npu(), renorm=renorm, output_softmax=output
    )
    torch.testing.assert_close(found[0].cpu(), y.half(), rtol=2**-10, atol=1e-6)
    assert torch.equal(found[1].cpu(), experts)
    if output and not renorm:
        torch.testing.assert_close(found[2].cpu(), scores, rtol=1e-5, atol=1e-6)
    else:
        assert found[2].numel() == 0


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("counted", [1, 2])
def test_moe_init_routing_quant(mode, pad, counted):
    torch.manual_seed(6)
    x, experts = torch.randn(4, 8), torch.tensor([[0, 2], [2, 1], [0, 2], [2, 0]], dtype=torch.int32)
    scale = torch.rand(3, 8) if mode == 1 else torch.tensor([20.0])
    offset = torch.tensor([2.0]) if mode == 0 else None
    slots = sorted(range(8), key=lambda slot: (int(experts.flatten()[slot]), slot))
    rows, scales, index = torch.zeros(6 if pad else 8, 8), torch.zeros(6 if pad else 8), torch.full((8,), -1)
    taken = [0, 0, 0]
    for place, slot in enumerate(slots):
        expert, token = int(experts.flatten()[slot]), slot // 2
        place = expert * 2 + taken[expert] if pad else place
        taken[expert] += 1
        if pad and taken[expert] > 2:
            continue
        index[slot] = place
        v = x[token] * scale[expert] if mode == 1 else x[token] * 20.0 + 2.0
        scales[place] = v.abs().max() / 127
        rows[place] = (v / scales[place] if mode == 1 else v).round().clamp(-128, 127)
    found = torch_npu.npu_moe_init_routing_quant(
        x.npu(),
        experts.npu(),
        scale=scale.npu(),
        offset=None if offset is None else offset.npu(),
        active_num=0,
        expert_capacity=2,
        expert_num=3,
        drop_pad_mode=pad,
        expert_tokens_num_mode=counted,
        expert_tokens_before_capacity_flag=True,
        quant_mode=mode,
    )
    torch.testing.assert_close(found[0].cpu().view(-1, 8).float(), rows, rtol=0, atol=1)
    assert found[1].cpu().tolist() == index.tolist()
    counts = [3, 1, 4]
    if pad:
        assert found[2] is None and found[3].cpu().tolist() == counts
    else:
        assert found[2].cpu().tolist() == (counts if counted == 2 else [3, 4, 8]) and found[3] is None
    if mode == 1:
        torch.testing.assert_close(found[4].cpu(), scales, rtol=1e-6, atol=0)
    else:
        assert found[4] is None


INDEX = st.one_of(
    st.tuples(
        st.just("slice"),
        st.integers(-6, 6),
        st.integers(-6, 6),
        st.sampled_from([-3, -1, 1, 2]),
        st.booleans(),
        st.booleans(),
    ),
    st.tuples(st.just("index"), st.integers(-2, 1)),
    st.tuples(st.just("new")),
    st.tuples(st.just("...")),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(INDEX, max_size=5))
def test_indexing(entries):
    """Against NumPy's, entry by entry; what NumPy refuses is refused."""
    x = torch.arange(2 * 3 * 4).view(2, 3, 4)
    begin, end, strides, chosen = [], [], [], []
    masks = dict(begin_mask=0, end_mask=0, ellipsis_mask=0, new_axis_mask=0, shrink_axis_mask=0)
    for bit, (kind, *rest) in enumerate(entries):
        first, last, step, open_begin, open_end = (
            rest if kind == "slice" else (*rest[:1], 0, 1, False, False) if rest else (0, 0, 1, 0, 0)
        )
        begin.append(first), end.append(last), strides.append(step)
        flags = {"index": "shrink_axis_mask", "new": "new_axis_mask", "...": "ellipsis_mask"}
        for mask, is_set in {
            "begin_mask": open_begin,
            "end_mask": open_end,
            flags.get(kind, ""): kind != "slice",
        }.items():
            if is_set:
                masks[mask] |= 1 << bit
        whole = slice(None if open_begin else first, None if open_end else last, step)
        chosen.append({"slice": whole, "index": first, "new": None, "...": ...}[kind])
    try:
        expected = x.numpy()[tuple(chosen)]
    except IndexError:
        with pytest.raises(RuntimeError, match="npu_indexing"):
            torch_npu.npu_indexing(x.npu(), begin, end, strides, **masks)
        return
    found = torch_npu.npu_indexing(x.npu(), begin, end, strides, **masks).cpu()
    assert found.shape == expected.shape and np.array_equal(found.numpy(), expected)


def test_indexing_refuses_and_writes():
    x = torch.arange(6).view(2, 3).npu()
    out = torch.zeros(1, 2, dtype=torch.int64).npu()
    torch_npu.npu_indexing(x, [1, 0], [2, 2], [1, 1], out=out)
    assert out.cpu().tolist() == [[3, 4]]
    for begin, end, strides, masks, message in (
        ([0], [1, 1], [1], {}, "begin, end, strides must be of one length"),
        ([0], [1], [0], {}, "strides must be other than 0"),
        ([0], [1], [-1], dict(shrink_axis_mask=1), "strides must be positive where shrink_axis_mask is set"),
        ([0, 0], [1, 1], [1, 1], dict(ellipsis_mask=3), "ellipsis_mask must be of one bit at most"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch_npu.npu_indexing(x, begin, end, strides, **masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sim_exponential(dtype):
    need_operator("npu_sim_exponential_")
    draws = []
    for seed in (1, 1, 2):
        x, generator = torch.zeros(4000, dtype=dtype).npu(), torch.Generator("npu").manual_seed(seed)
        assert torch_npu.npu_sim_exponential_(x, 2.0, generator=generator) is x
        draws.append(x.cpu().float())
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    ordered = draws[0].sort().values.double()
    distribution = 1 - torch.exp(-2 * ordered)
    steps = torch.arange(1, 4001) / 4000
    assert float((distribution - steps).abs().max()) < 1.95 / 4000**0.5  # Kolmogorov and Smirnov, 1 in 1000
    x = torch.ones(3, dtype=dtype).npu()
    assert torch_npu.npu_sim_exponential_(x, float("inf")).tolist() == [0, 0, 0]
    with pytest.raises(RuntimeError, match="npu_sim_exponential_ expects lambd > 0.0, but found lambd=0"):
        torch_npu.npu_sim_exponential_(x, 0.0)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (5, 6, 6)])
def test_mhc_sinkhorn(shape):
    torch.manual_seed(0)
    x, eps = torch.randn(shape), 1e-3
    expected = torch.empty(shape, dtype=torch.float64)
    size = shape[-1]
    for matrix, out in zip(x.double().view(-1, size, size), expected.view(-1, size, size)):
        y = [[math.exp(v) / sum(math.exp(w) for w in row) + eps for v in row] for row in matrix.tolist()]
        for step in range(7):  # columns first, and after each division of the rows
            if step % 2:
                y = [[v / (sum(row) + eps) for v in row] for row in y]
            else:
                sums = [sum(column) + eps for column in zip(*y)]
                y = [[v / s for v, s in zip(row, sums)] for row in y]
        out.copy_(torch.tensor(y))
    found = torch_npu.npu_mhc_sinkhorn(x.npu(), eps=eps, num_iters=4)
    torch.testing.assert_close(found[0].cpu().double(), expected, rtol=1e-5, atol=1e-6)
    assert found[1] is None and found[2] is None
    assert torch.equal(torch_npu.npu_mhc_sinkhorn(x.npu(), eps=eps, num_iters=4, out_flag=1)[0].cpu(), found[0].cpu())


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (70, 6, 6), (7600, 8, 8)])
def test_mhc_sinkhorns_steps_lie_by_core(shape):
    """Of the last shape a core has 119 matrices, 1088 bytes each, and half of 248 KiB but for 288 bytes: 116, by eights 112."""
    torch.manual_seed(1)
    n, count, eps = shape[-1], math.prod(shape[:-2]), 1e-3
    x = torch.randn(shape)
    y, norm, sums = (t.cpu() for t in torch_npu.npu_mhc_sinkhorn(x.npu(), eps=eps, num_iters=2, out_flag=1))
    softmax = np.exp(x.double().numpy()).reshape(-1, n, n)
    softmax = softmax / softmax.sum(2, keepdims=True)
    first = (softmax + eps).sum(1, keepdims=True) + eps
    matrices, divided = [softmax, (softmax + eps) / first], [np.ones((count, n, 1)), first]
    for axis in (2, 1):
        divided.append(matrices[-1].sum(axis, keepdims=True) + eps)
        matrices.append(matrices[-1] / divided[-1])
    of_core = math.ceil(count / 64)
    size = min(of_core, 112) if n == 8 else of_core
    wanted_norm, wanted_sums = [], []
    for core in range(0, count, of_core):
        for start in range(core, min(core + of_core, count), size):
            chunk = slice(start, min(start + size, core + of_core, count))
            for step in range(4):
                padded = np.pad(matrices[step][chunk], ((0, 0), (0, 0), (0, 8 - n)))
                wanted_norm.append(np.concatenate([padded[:, row].ravel() for row in range(n)]))
            for step in (0, 2):
                rows, columns = divided[step][chunk][:, :, 0], divided[step + 1][chunk][:, 0]
                wanted_sums.append(np.pad(rows.T, ((0, 8 - n), (0, 0)), constant_values=1).ravel())
                wanted_sums.append(np.pad(columns, ((0, 0), (0, 8 - n))).ravel())
    for found, wanted in ((norm, wanted_norm), (sums, wanted_sums)):
        torch.testing.assert_close(found.double(), torch.from_numpy(np.concatenate(wanted)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y.double().view(-1, n, n), torch.from_numpy(matrices[-1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (70, 6, 6)])
def test_the_gradient_of_mhc_sinkhorn(shape):
    need_torch(2, 13)  # torch_npu 2.8 records none
    torch.manual_seed(2)
    x, grad, eps = torch.randn(shape), torch.randn(shape), 1e-3
    exact, ours = x.double().requires_grad_(), x.npu().requires_grad_()
    y = torch.exp(exact) / torch.exp(exact).sum(-1, keepdim=True) + eps
    for dim in (-2, -1, -2, -1, -2):
        y = y / (y.sum(dim, keepdim=True) + eps)
    y.backward(grad.double())
    torch_npu.npu_mhc_sinkhorn(ours, eps=eps, num_iters=3, out_flag=1)[0].backward(grad.npu())
    torch.testing.assert_close(ours.grad.cpu().double(), exact.grad, rtol=1e-4, atol=1e-5)
    _, norm, sums = torch_npu.npu_mhc_sinkhorn(x.npu(), out_flag=1)
    with pytest.raises(RuntimeError, match="x must be not empty with out_flag 1"):
        torch_npu.npu_mhc_sinkhorn(x[:0].npu(), out_flag=1)
    with pytest.raises(RuntimeError, match="npu_mhc_sinkhorn_backward: norm and sum must be of 2 . num_iters"):
        torch.ops.npu.npu_mhc_sinkhorn_backward(grad.npu(), norm[1:], sums)


@pytest.mark.parametrize("with_res", [False, True])
def test_mhc_post(with_res):
    torch.manual_seed(1)
    x, out, post = torch.randn(2, 3, 4, 5).half(), torch.randn(2, 3, 5).half(), torch.randn(2, 3, 4)
    res = torch.randn(2, 3, 4, 4) if with_res else None
    expected = torch.empty(2, 3, 4, 5, dtype=torch.float64)
    for b in range(2):
        for s in range(3):
            for j in range(4):
                kept = (
                    sum(res[b, s, i, j].double() * x[b, s, i].double() for i in range(4))
                    if with_res
                    else x[b, s, j].double()
                )
                expected[b, s, j] = kept + post[b, s, j].double() * out[b, s].double()
    args = [x, res, out, post]
    check(torch_npu.npu_mhc_post, args, [expected.half()], modes=("eager",), rtol=2**-10, atol=2**-12)


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_swiglu_group_quant_backward(limit, weighted):
    """Against autograd of the forward computation."""
    need_operator("npu_swiglu_group_quant_backward")
    torch.manual_seed(2)
    x, grad, weight = torch.randn(5, 8), torch.randn(5, 4), torch.rand(5, 1)
    groups = torch.tensor([1, 3]) if weighted else None
    wide = x.double().requires_grad_()
    a, b = wide.chunk(2, -1)
    a, b = (a.clamp(max=limit), b.clamp(-limit, limit)) if limit else (a, b)
    origin = a / (1 + torch.exp(-a)) * b
    used = torch.tensor([[1.0]] * 4 + [[0.0 if weighted else 1.0]])
    factors = weight.double().requires_grad_()
    result = origin * factors if weighted else origin
    grads = torch.autograd.grad(result, [wide, factors] if weighted else [wide], (grad * used).double())
    expected = [grads[0].float(), grads[1].float() if weighted else torch.empty(0)]

    def gradients(grad, x, weight, origin, groups):
        return torch_npu.npu_swiglu_group_quant_backward(
            grad, x, weight=weight, y_origin=origin, group_index=groups, clamp_limit=limit
        )

    args = [grad, x, weight if weighted else None, origin.detach().float() if weighted else None, groups]
    check(gradients, args, expected, modes=("eager",), rtol=1e-5, atol=1e-6)
