"""The operators of ATB, by loops over tokens in NumPy; captured with the lengths of sequences on the host, too."""

import numpy as np
import pytest
import torch
import torch_npu

from versions import need_operator

RNG = np.random.default_rng(0)
HALF = dict(rtol=2**-9, atol=2**-11)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float16)


def npu(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).npu()


def attention(query, key, value, scale, added=None, seen=None):
    """query [Sq, N, D], key [Sk, K, D], value [Sk, K, Dv] -> [Sq, N, Dv], float64; added and seen [N, Sq, Sk]."""
    rows, heads = query.shape[:2]
    out = np.zeros((rows, heads, value.shape[2]))
    for n in range(heads):
        k = n // (heads // key.shape[1])
        for i in range(rows):
            scores = key[:, k].astype(np.float64) @ query[i, n].astype(np.float64) * scale
            scores = scores if added is None else scores + added[n, i]
            weights = (
                np.exp(scores - scores.max()) if seen is None else np.exp(scores - scores[seen[i]].max()) * seen[i]
            )
            out[i, n] = weights / weights.sum() @ value[:, k].astype(np.float64)
    return out


def close(out: torch.Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(out.cpu().double(), torch.from_numpy(expected).reshape(out.shape), **HALF)


LENGTHS = [3, 5]
QUERY, KEY, VALUE = random(8, 4, 6), random(8, 2, 6), random(8, 2, 3)


def by_sequence(added=None, seen=None):
    parts, start = [], 0
    for length in LENGTHS:
        rows = slice(start, start + length)
        more = None if added is None else added[:, :length, :length]
        parts.append(attention(QUERY[rows], KEY[rows], VALUE[rows], 0.4, more, None if seen is None else seen(length)))
        start += length
    return np.concatenate(parts)


def test_flash_attention_without_and_with_a_mask():
    need_operator("atb::_npu_flash_attention_v3")
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    out = torch.empty(8, 4, 3, dtype=torch.float16).npu()
    torch_npu._npu_flash_attention_unpad(npu(QUERY), npu(KEY), npu(VALUE), lengths, 0.4, 4, 2, out)
    close(out, by_sequence())
    again = torch.empty_like(out)
    given = (npu(QUERY), npu(KEY), npu(VALUE), lengths, 0.4, 4, 2)
    torch.ops.atb._npu_flash_attention_unpad_v2(*given, kernel_type=1, out=again)
    assert torch.equal(again.cpu(), out.cpu())
    mask = np.triu(np.full((6, 6), -9999.0), 1).astype(np.float16)
    flat = torch.empty(8, 12, dtype=torch.float16).npu()  # heads side by side
    sides = [npu(x.reshape(8, -1)) for x in (QUERY, KEY, VALUE)]
    torch_npu._npu_flash_attention(*sides, npu(mask), lengths, 0.4, 4, 2, flat)
    close(flat, by_sequence(seen=lambda n: np.tril(np.ones((n, n), bool))))
    triangle = torch.ones(128, 128, dtype=torch.float16).triu(1).npu()
    torch_npu._npu_flash_attention_v3(npu(QUERY), npu(KEY), npu(VALUE), triangle, lengths, 0.4, 4, 2, out=out)
    close(out, by_sequence(seen=lambda n: np.tril(np.ones((n, n), bool))))


SLOPES = np.array([-0.5, -0.25, -0.1, -0.7], dtype=np.float32)
DISTANCE = np.arange(256)[:, None] - np.arange(256)


@pytest.mark.parametrize("root", [False, True])
def test_flash_attention_v2_with_alibi(root):
    steps = np.sqrt(np.abs(DISTANCE)) if root else np.abs(DISTANCE)
    mask = (np.tril(steps) + np.triu(np.full((256, 256), 60000.0), 1)).astype(np.float16)
    out = torch.empty(8, 4, 3, dtype=torch.float16).npu()
    given = [npu(QUERY), npu(KEY), npu(VALUE)]
    sizes = dict(scale_value=0.4, num_heads=4, num_kv_heads=2, out=out)
    added = SLOPES[:, None, None] * steps
    expected = by_sequence(added, lambda n: np.tril(np.ones((n, n), bool)))
    compressed = dict(mask=npu(mask), slopes=npu(SLOPES), mask_type=5 if root else 4)
    torch_npu.atb._npu_flash_attention_v2(*given, LENGTHS, **compressed, **sizes)
    close(out, expected)
    whole = np.triu(np.full((4, 6, 6), -60000.0), 1) + added[:, :6, :6]
    torch_npu.atb._npu_flash_attention_v2(
        *given, LENGTHS, mask=npu(whole[None].astype(np.float32)), mask_type=2, **sizes
    )
    close(out, expected)
    with pytest.raises(RuntimeError, match="_npu_flash_attention_v2: mask must be"):
        torch_npu.atb._npu_flash_attention_v2(*given, LENGTHS, **{**compressed, "mask": npu(mask.T)}, **sizes)


CACHES = random(5, 4, 2, 6), random(5, 4, 2, 3)
TABLE = np.array([[2, 0, 4], [1, 3, 9]], dtype=np.int32)
CONTEXT = [10, 6]


def tokens(cache: np.ndarray, sequence: int) -> np.ndarray:
    return np.stack([cache[TABLE[sequence, t // 4], t % 4] for t in range(CONTEXT[sequence])])


def paged(queries, added=None, seen=None):
    parts, start = [], 0
    for b, count in enumerate(queries):
        rows = slice(start, start + count)
        key, value = (tokens(cache, b) for cache in CACHES)
        more = None if added is None else added[b]
        visible = None if seen is None else seen(count, CONTEXT[b])
        parts.append(attention(QUERY[rows], key, value, 0.4, more, visible))
        start += count
    return np.concatenate(parts)


def test_paged_attention_of_one_query():
    given = [npu(QUERY[:2]), *map(npu, CACHES)]
    out, lengths = torch.empty(2, 4, 3, dtype=torch.float16).npu(), torch.tensor(CONTEXT, dtype=torch.int32)
    torch_npu._npu_paged_attention(*given, 2, 4, 0.4, npu(TABLE), lengths, out)
    close(out, paged([1, 1]))
    mask = random(2, 4, 1, 10)
    options = dict(value_cache=given[2], num_kv_heads=2, num_heads=4, scale_value=0.4, out=out)
    torch_npu.atb._npu_paged_attention_v2(
        given[0], given[1], npu(TABLE), CONTEXT, mask=npu(mask), mask_type=2, **options
    )
    close(out, paged([1, 1], [mask[b, :, :, : CONTEXT[b]].astype(np.float64) for b in range(2)]))
    size = torch.ops.atb._npu_paged_attention_v2_get_workspace
    workspace = size(given[0], given[1], npu(TABLE), CONTEXT, mask=npu(mask), mask_type=2, **options)
    torch_npu.atb._npu_paged_attention_v2(
        given[0], given[1], npu(TABLE), CONTEXT, mask=npu(mask), mask_type=2, workspace=workspace, **options
    )
    close(out, paged([1, 1], [mask[b, :, :, : CONTEXT[b]].astype(np.float64) for b in range(2)]))
    torch_npu._npu_paged_attention_mla(*given[:2], 2, 4, 0.4, npu(TABLE), lengths, 3, out)
    expected = [attention(QUERY[b : b + 1], tokens(CACHES[0], b), tokens(CACHES[0][..., :3], b), 0.4) for b in range(2)]
    close(out, np.concatenate(expected))
    with pytest.raises(RuntimeError, match="block_table must be of second size 4 at least"):
        torch_npu._npu_paged_attention(*given, 2, 4, 0.4, npu(TABLE), lengths + 4, out)


def test_paged_attention_of_several_queries():
    out = torch.empty(8, 4, 3, dtype=torch.float16).npu()
    lengths, context = (torch.tensor(x, dtype=torch.int32) for x in (LENGTHS, CONTEXT))
    rows = np.zeros((8, 10), np.float16)
    for b, start in enumerate((0, 3)):
        for i in range(LENGTHS[b]):
            rows[start + i, CONTEXT[b] - LENGTHS[b] + i + 1 :] = -9999
    expected = paged(LENGTHS, seen=lambda n, k: np.tril(np.ones((n, k), bool), k - n))
    caches = list(map(npu, CACHES))
    sizes = (2, 4, 0.4, out)
    torch_npu._npu_paged_attention_splitfuse(npu(QUERY), *caches, npu(TABLE), context, npu(rows), lengths, *sizes)
    close(out, expected)
    triangle = torch.ones(128, 128, dtype=torch.float16).triu(1).npu()
    torch_npu._npu_flash_attention_qlens(npu(QUERY), *caches, npu(TABLE), triangle, lengths, context, *sizes)
    close(out, expected)
    mask = np.tril(DISTANCE) + np.triu(np.full((256, 256), 60000.0), 1)
    torch_npu.atb._npu_flash_attention_prefix_v2(
        npu(QUERY),
        *(npu(cache.reshape(5, 4, -1)) for cache in CACHES),
        npu(TABLE),
        npu(mask.astype(np.float16)),
        LENGTHS,
        CONTEXT,
        slopes=npu(SLOPES),
        mask_type=4,
        num_kv_heads=2,
        num_heads=4,
        scale_value=0.4,
        out=out,
    )
    added = []
    for n, k in zip(LENGTHS, CONTEXT):
        added.append(SLOPES[:, None, None] * np.abs(np.arange(n)[:, None] + k - n - np.arange(k)))
    close(out, paged(LENGTHS, added, lambda n, k: np.tril(np.ones((n, k), bool), k - n)))


def group_scores(row, count, kept, n):
    """One token's scores, 0 outside of the groups whose n largest have the largest sums."""
    groups = np.split(row, count)
    order = sorted(range(count), key=lambda g: (-sum(sorted(groups[g])[-n:]), g))[:kept]
    return np.concatenate([group if g in order else np.zeros_like(group) for g, group in enumerate(groups)])


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_fused_add_topk_div(mapped, norm):
    x, bias = random(5, 64), random(64)
    counts, table = RNG.integers(0, 4, 64).astype(np.int32), RNG.integers(0, 99, (64, 3)).astype(np.int32)
    weights, indices = np.empty((5, 6)), np.empty((5, 6), np.int64)
    for t in range(5):
        score = 1 / (1 + np.exp(-x[t].astype(np.float64)))
        chosen = group_scores(score + bias.astype(np.float64), 8, 4, 2)
        order = sorted(range(64), key=lambda e: (-chosen[e], e))[:6]
        weights[t] = score[order] / (score[order].sum() / 2.5 if norm else 1)
        indices[t] = [table[e, t % max(1, counts[e])] if mapped else e for e in order]
    options = dict(group_num=8, group_topk=4, n=2, k=6, is_norm=norm, scale=2.5, enable_expert_mapping=mapped)
    if mapped:
        options |= dict(mapping_num=npu(counts), mapping_table=npu(table))
    out = dict(y=torch.empty(5, 6).npu(), indices=torch.empty(5, 6, dtype=torch.int32).npu())
    torch_npu.atb.npu_fused_add_topk_div(npu(x), npu(bias), **options, **out)
    for y, places in (torch_npu.atb.npu_fused_add_topk_div(npu(x), npu(bias), **options), tuple(out.values())):
        torch.testing.assert_close(y.cpu().double(), torch.from_numpy(weights), rtol=1e-5, atol=1e-6)
        assert places.dtype == torch.int32 and np.array_equal(places.cpu().numpy(), indices)
    for wrong, message in (
        (dict(group_num=4), "group_num must be one of 8, got 4"),
        (dict(n=9), "n must be from 1 to 8, got 9"),
        (dict(k=65), "k must be from 1 to 64, got 65"),
        (dict(activation_type="relu"), "activation_type must be"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch_npu.atb.npu_fused_add_topk_div(npu(x), npu(bias), **{**options, **wrong})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 3])
def test_group_topk(dtype, n):
    x = torch.from_numpy(random(4, 20)).to(dtype)
    expected = np.stack([group_scores(row, 5, 2, n) for row in x.double().numpy()])
    on_npu = x.npu()
    torch_npu._npu_group_topk(on_npu, k=2, group_num=5, n=n)
    assert np.array_equal(on_npu.cpu().double().numpy(), expected)


def test_matmul_add_fp32():
    x, weight, sums = random(6, 4), random(6, 10)[:, ::2], RNG.standard_normal((4, 5)).astype(np.float32)
    expected = sums + sum(np.outer(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(x, weight))
    on_npu, strided = npu(sums), torch.from_numpy(random(6, 10)).npu()[:, ::2]
    strided.copy_(npu(weight))
    torch_npu._npu_matmul_add_fp32(npu(x), strided, on_npu)
    torch.testing.assert_close(on_npu.cpu().double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="C must be of shape .4, 5., got shape .5, 4."):
        torch_npu._npu_matmul_add_fp32(npu(x), strided, on_npu.t())


def with_lse(query, key, value, seen=None):
    """(attention, the logarithm of the sum of e^score [N, Sq])."""
    scores = np.einsum("qnd,knd->nqk", query, np.repeat(key, query.shape[1] // key.shape[1], 1)) * 0.4
    scores = scores if seen is None else np.where(seen, scores, -np.inf)
    return attention(query, key, value, 0.4, seen=seen), np.log(np.exp(scores).sum(-1))


@pytest.mark.parametrize("form", ["first", "causal", "joined", "no keys"])
def test_ring_mla(form):
    others = {"no keys": ([3, 5], [4, 0]), "joined": ([3, 5], [7, 2]), "causal": ([3, 5], [6, 5])}
    lengths = others.get(form, ([3, 5], [3, 5]))
    count = sum(lengths[1])
    q_nope, q_rope = random(8, 4, 6), random(8, 4, 2)
    k_nope, k_rope, value = random(count, 2, 6), random(count, 2, 2), random(count, 2, 3)
    query, key = (np.concatenate(x, -1).astype(np.float64) for x in ((q_nope, q_rope), (k_nope, k_rope)))
    outs, sums, q_at, k_at = [], [], 0, 0
    for q_len, k_len in zip(*lengths):
        rows, columns = slice(q_at, q_at + q_len), slice(k_at, k_at + k_len)
        seen = np.tril(np.ones((q_len, k_len), bool)) if form == "causal" else None
        nothing = np.zeros((q_len, 4, 3)), np.zeros((4, q_len))
        found = with_lse(query[rows], key[columns], value[columns], seen) if k_len else nothing
        outs.append(found[0])
        sums.append(found[1])
        q_at, k_at = q_at + q_len, k_at + k_len
    out, lse = np.concatenate(outs), np.concatenate(sums, 1)
    options = dict(qk_scale=0.4, mask_type="mask_type_triu" if form == "causal" else "no_mask")
    if form == "joined":
        before, before_lse = random(8, 4, 3), RNG.standard_normal((4, 8)).astype(np.float32) * 2
        old, new = np.exp(before_lse.astype(np.float64)), np.exp(lse)
        share = (old / (old + new)).T[..., None]
        out, lse = before * share + out * (1 - share), np.log(old + new)
        options |= dict(pre_out=npu(before), prev_lse=npu(before_lse), calc_type="calc_type_default")
    mask = (
        torch.ones(512, 512, dtype=torch.float16).triu(1).npu()
    )  # the key behind a query's place, and all that follow
    tensors = [*map(npu, (q_nope, q_rope, k_nope, k_rope, value)), mask]
    given = [*tensors, torch.tensor(lengths[0] if form == "first" else lengths, dtype=torch.int32), 4, 2]
    made = dict(output=torch.empty(8, 4, 3).half().npu(), softmax_lse=torch.empty(4, 8).npu())
    torch_npu.atb.npu_ring_mla(*given, **options, **made)
    for found in (torch_npu.atb.npu_ring_mla(*given, **options), tuple(made.values())):
        close(found[0], out)
        torch.testing.assert_close(found[1].cpu().double(), torch.from_numpy(lse), rtol=1e-5, atol=1e-5)
    if form == "first":
        with pytest.raises(RuntimeError, match="pre_out and prev_lse must be given"):
            torch_npu.atb.npu_ring_mla(*given, **options, calc_type="calc_type_default")
    if form == "no keys":
        with pytest.raises(NotImplementedError, match="seqlen of 0 keys with calc_type_default is not served"):
            torch_npu.atb.npu_ring_mla(*given, **options, calc_type="calc_type_default")
    if form == "causal":
        with pytest.raises(RuntimeError, match="npu_ring_mla: mask must be the upper triangle"):
            torch_npu.atb.npu_ring_mla(*given[:5], mask.t(), *given[6:], **options)


def test_self_attention_prefix_encoder():
    caches, lengths, context = (random(6, 128, 2, 6), random(6, 128, 2, 6)), [3, 2], [131, 2]
    table = np.array([[4, 1], [2, 9]], dtype=np.int32)
    query, parts, at = random(5, 4, 6), [], 0
    for b, (q_len, k_len) in enumerate(zip(lengths, context)):
        key, value = (np.stack([cache[table[b, t // 128], t % 128] for t in range(k_len)]) for cache in caches)
        seen = np.tril(np.ones((q_len, k_len), bool), k_len - q_len)
        parts.append(attention(query[at : at + q_len], key, value, 0.4, seen=seen))
        at += q_len
    function, sizes = torch_npu.atb.npu_self_attention_prefix_encoder, (lengths, context, 4, 0.4, 2)
    flat, out = [npu(x.reshape(*x.shape[:-2], -1)) for x in (query, *caches)], torch.empty(5, 24).half().npu()
    function(*flat, npu(table), *sizes, output=out)
    for found in (function(npu(query), *map(npu, caches), npu(table), *sizes), out):
        close(found, np.concatenate(parts))
    with pytest.raises(RuntimeError, match="kv_seqlen must be a multiple of 128 more than seqlen"):
        function(*flat, npu(table), lengths, [130, 2], 4, 0.4, 2)


@pytest.mark.parametrize("mode", ["krope_ctkv", "nzcache", "int8_nzcache"])
def test_multi_head_latent_attention(mode):
    quantised, strip = mode == "int8_nzcache", 32 if mode == "int8_nzcache" else 16
    ctkv, q_nope = (RNG.integers(-20, 20, s) for s in ((5, 4, 1, 64), (2, 4, 64)))
    ctkv, q_nope = (x.astype(np.int8) if quantised else (x / 20).astype(np.float16) for x in (ctkv, q_nope))
    k_rope, q_rope = random(5, 4, 1, 32), random(2, 4, 32)
    descales = [RNG.uniform(0.001, 0.002, 4).astype(np.float32) for _ in range(2)] if quantised else []
    expected, sums = np.empty((2, 4, 64)), np.empty((2, 4, 1))
    for b in range(2):
        latent, rope = (tokens(cache, b)[:, 0].astype(np.float64) for cache in (ctkv, k_rope))
        for n in range(4):
            scores = latent @ q_nope[b, n] * (descales[0][n] if quantised else 1.0) + rope @ q_rope[b, n]
            weights = np.exp(scores * 0.1 - (scores * 0.1).max())
            step = weights.max() / 127
            used = np.round(weights / step) * step * descales[1][n] if quantised else weights
            expected[b, n], sums[b, n] = used @ latent / weights.sum(), np.log(np.exp(scores * 0.1).sum())

    def laid(cache, strip):
        if mode == "krope_ctkv":
            return npu(cache)
        return npu(cache.reshape(5, 4, -1, strip).transpose(0, 2, 1, 3))

    given = [npu(q_nope), npu(q_rope), laid(ctkv, strip), laid(k_rope, 16), npu(TABLE), CONTEXT, 4, 0.1, 1]
    options = dict(cache_mode=mode, **dict(zip(("qk_descale", "pv_descale"), map(npu, descales))))
    function, ring = torch_npu.atb.npu_multi_head_latent_attention, dict(options, calc_type="calc_type_ring")
    out, lse = torch.empty(2, 4, 64).half().npu(), torch.empty(2, 4, 1).half().npu()
    workspace = torch_npu.atb._npu_multi_head_latent_attention_get_workspace(*given, True, **ring)
    function(*given, True, **ring, workspace=workspace, output=out, lse=lse)
    alone = torch.empty_like(out)
    function(*given, **options, output=alone)
    both = function(*given, True, **ring)
    for found in (out, alone, function(*given, **options), both[0]):
        close(found, expected)
    for found in (lse, both[1]):
        close(found, sums)
    assert function(*given, False, **ring)[1] is None
    with pytest.raises(RuntimeError, match="mask_type must be one of None, 'undefined', got 'mask_type_spec'"):
        function(*given, **options, mask_type="mask_type_spec")


def test_paged_attention_of_int8():
    query, key, value = (RNG.integers(-20, 20, s).astype(np.int8) for s in ((2, 4, 6), (5, 4, 2, 6), (5, 4, 2, 3)))
    k_scale, v_scale = (RNG.uniform(0.01, 0.02, 4).astype(np.float32) for _ in range(2))
    expected = np.empty((2, 4, 3))
    for b in range(2):
        for n in range(4):
            scores = tokens(key, b)[:, n // 2].astype(np.float64) @ query[b, n].astype(np.float64) * k_scale[n] * 0.4
            weights = np.exp(scores - scores.max())
            step = weights.max() / 127
            rounded = np.round(weights / step) @ tokens(value, b)[:, n // 2].astype(np.float64)
            expected[b, n] = rounded * step * v_scale[n] / weights.sum()
    out, lengths = torch.empty(2, 4, 3, dtype=torch.float16).npu(), torch.tensor(CONTEXT, dtype=torch.int32)
    given = [npu(x) for x in (query, key, value)]
    scales = [npu(k_scale), npu(v_scale)]
    torch_npu._npu_paged_attention_quant(*given, 2, 4, 0.4, npu(TABLE), lengths, 3, 1, *scales, out)
    close(out, expected)


def test_a_captured_paged_attention_keeps_the_lengths_that_it_was_launched_with():
    given = [npu(QUERY[:2]), *map(npu, CACHES)]
    out, lengths = torch.zeros(2, 4, 3, dtype=torch.float16).npu(), torch.tensor(CONTEXT, dtype=torch.int32)
    graph = torch.npu.NPUGraph()
    workspace = torch_npu._npu_paged_attention_get_workspace(*given, 2, 4, 0.4, npu(TABLE), lengths, out)
    table = npu(TABLE)
    with torch.npu.graph(graph):
        torch_npu._npu_paged_attention(*given, 2, 4, 0.4, table, lengths, out, workspace=workspace)
    lengths.fill_(1)
    graph.replay()
    close(out, paged([1, 1]))


@pytest.mark.parametrize("neox", [False, True])
def test_rotary_embedding(neox):
    angles = np.arange(10)[:, None] * np.array([1.0, 0.3, 0.05])
    cache = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    positions, query, key = np.array([7, 0, 3]), random(3, 12), random(3, 6)
    turned = []
    for x in (query, key):
        y = x.reshape(3, -1, 6).astype(np.float64)
        for t, p in enumerate(positions):
            for i in range(3):
                a, b = (i, i + 3) if neox else (2 * i, 2 * i + 1)
                one, two, cos, sin = y[t, :, a].copy(), y[t, :, b].copy(), cache[p, i], cache[p, 3 + i]
                y[t, :, a], y[t, :, b] = one * cos - two * sin, two * cos + one * sin
        turned.append(y)
    on_npu = npu(query), npu(key)
    torch_npu._npu_rotary_embedding(npu(positions), *on_npu, 6, npu(cache), neox)
    close(on_npu[0], turned[0])
    close(on_npu[1], turned[1])


def test_reshape_and_cache():
    key, value = RNG.integers(-128, 128, (3, 2, 32)).astype(np.int8), random(3, 2, 16)
    keys, values = RNG.integers(-128, 128, (4, 2, 5, 32)).astype(np.int8), random(4, 5, 2, 16)  # NZ, by token
    slots = np.array([13, -1, 6], dtype=np.int32)
    wanted = keys.copy(), values.copy()
    for t, slot in enumerate(slots):
        if slot >= 0:
            wanted[0][slot // 5, :, slot % 5] = key[t].reshape(2, 32)
            wanted[1][slot // 5, slot % 5] = value[t]
    on_npu = npu(keys), npu(values)
    torch_npu._npu_reshape_and_cache(npu(key), npu(value), *on_npu, npu(slots))
    for found, expected in zip(on_npu, wanted):
        assert torch.equal(found.cpu(), torch.from_numpy(expected))
    alone = npu(values)
    torch_npu._npu_reshape_and_cache_siso(npu(value), alone, npu(slots))
    assert torch.equal(alone.cpu(), torch.from_numpy(wanted[1]))


def test_quantize_per_tensor():
    x, scale, zero = random(2, 8), RNG.uniform(0.01, 0.1, 8).astype(np.float16), RNG.integers(-9, 9, 8).astype(np.int8)
    expected = np.clip(np.round(x.astype(np.float32) / scale.astype(np.float32)) + zero, -128, 127).astype(np.int8)
    y = torch.zeros(2, 8, dtype=torch.int8).npu()
    torch_npu._npu_quantize_per_tensor(npu(x), npu(scale), npu(zero), y)
    assert torch.equal(y.cpu(), torch.from_numpy(expected))


@pytest.mark.parametrize("running", [False, True])
def test_paged_cache_load(running):
    torch.manual_seed(0)
    keys, values = torch.randn(6, 4, 2, 3).half(), torch.randn(6, 4, 2, 5).half()
    table, lengths = torch.tensor([[5, 0, 2], [1, 3, 4], [2, 2, 0]], dtype=torch.int32), [6, 0, 7]
    starts = torch.tensor([5, 0, 3], dtype=torch.int32)  # the first begins in its second block
    expected = [[], []]
    for sequence, length in enumerate(lengths):
        for token in range(length):
            block = int(table[sequence, int(starts[sequence]) // 4 + token // 4])
            for found, cache in zip(expected, (keys, values)):
                found.append(cache[block, token % 4])
    given = torch.tensor([0, *lengths]).cumsum(0).int() if running else torch.tensor(lengths).int()
    operands = [x.npu() for x in (keys, values, table, given)]
    options = dict(seq_starts=starts.npu(), cumsum=running)
    out = [torch.zeros(13, 2, width).half().npu() for width in (3, 5)]
    torch_npu.atb.npu_paged_cache_load(*operands, **options, key=out[0], value=out[1])
    for found in (torch_npu.atb.npu_paged_cache_load(*operands, **options), out):
        assert all(torch.equal(one.cpu(), torch.stack(wanted)) for one, wanted in zip(found, expected))
    with pytest.raises(RuntimeError, match="context_lens must be from 0 to what block_table holds"):
        torch_npu.atb.npu_paged_cache_load(*operands[:3], torch.tensor([13, 0, 0]).int().npu())
