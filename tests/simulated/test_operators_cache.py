"""Writes to key/value caches against loops over tokens, from the operators' documents."""

import pytest
import torch
import torch_npu
from test_operators_position import ONE_ROUNDING, random, turned

from everywhere import check
from versions import need_torch


def exact(function, args, expected, **options):
    check(function, args, expected, **options)


def test_scatter_update_by_entry_and_by_place():
    data, updates = random(4, 6, 8), random(4, 2, 8, seed=1)
    indices = torch.tensor([0, 4, 1, 3])
    expected = data.clone()
    for i, place in enumerate(indices):
        expected[i, place : place + 2] = updates[i]
    exact(torch_npu.scatter_update, [data, indices, updates, 1], [expected, data])
    pairs = torch.tensor([[2, 1], [0, 4]])
    expected = data.clone()
    for i, (entry, place) in enumerate(pairs.tolist()):
        expected[entry, place : place + 2] = updates[i]
    exact(torch_npu.scatter_update, [data, pairs, updates[:2], -2], [expected, data])
    exact(torch_npu.scatter_update_, [data, pairs, updates[:2], -2], [expected, expected], modes=("eager",))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, torch.int64, torch.bool])
@pytest.mark.parametrize("depth", [1, 2])
def test_scatter_nd_update(depth, dtype):
    data = torch.randint(-5, 5, (4, 6, 8)).to(dtype)
    indices = torch.tensor([[3, 1], [0, 5], [2, 2]], dtype=torch.int32)[:, :depth]
    updates = torch.randint(-5, 5, (3, *data.shape[depth:])).to(dtype)
    expected = data.clone()
    for place, update in zip(indices.tolist(), updates):
        expected[tuple(place)] = update
    exact(torch_npu.npu_scatter_nd_update, [data, indices, updates], [expected, data], modes=("eager", "static"))
    exact(torch_npu.npu_scatter_nd_update_, [data, indices, updates], [expected, expected], modes=("eager", "static"))


def test_scatter_nd_update_refuses_shapes_that_do_not_fit():
    x = random(4, 6).npu()
    with pytest.raises(ValueError, match="updates must have shape"):
        torch_npu.npu_scatter_nd_update(x, torch.tensor([[1], [2]]).npu(), x)


def test_quant_scatter():
    cache, updates = torch.randint(-9, 9, (2, 6, 32)).to(torch.int8), random(2, 1, 32)
    scales, zeros = torch.rand(32).add(0.1).bfloat16(), random(32, seed=2)
    indices = torch.tensor([4, 0], dtype=torch.int32)
    expected = cache.clone()
    for i, place in enumerate(indices):
        for j in range(32):
            value = round(float(updates[i, 0, j].float() / scales[j].float() + zeros[j].float()))
            expected[i, place, j] = max(-128, min(127, value))
    exact(torch_npu.npu_quant_scatter, [cache, indices, updates, scales, zeros], [expected, cache])
    exact(
        torch_npu.npu_quant_scatter_, [cache, indices, updates, scales, zeros], [expected, expected], modes=("eager",)
    )


def test_scatter_list():
    tensors = [random(4, 8, 16, seed=seed) for seed in range(3)]
    indices, updates = torch.tensor([7, 0, 3], dtype=torch.int32), random(3, 4, 1, 16)
    mask = torch.tensor([1, 0, 1], dtype=torch.uint8)
    expected = [tensor.clone() for tensor in tensors]
    for i, wanted in enumerate(mask):
        if wanted:
            expected[i][:, indices[i]] = updates[i][:, 0]
    exact(torch_npu.npu_scatter_list, [tensors, indices, updates, mask], expected, modes=("eager", "static"))


def paged(cache: torch.Tensor, tokens: torch.Tensor, slots: list[int], size: int, nz: bool) -> torch.Tensor:
    """The cache with tokens [T, heads * D] at the slots, by loops over pieces."""
    cache = cache.clone()
    if not nz:
        rows = cache.view(-1, tokens.shape[1])
        for token, slot in zip(tokens, slots):
            if slot >= 0:
                rows[slot] = token
        return cache
    piece = 32 // cache.element_size()
    pages = cache.view(cache.shape[0], tokens.shape[1] // piece, size, piece)
    for token, slot in zip(tokens, slots):
        for number in range(tokens.shape[1] // piece):
            if slot >= 0:
                pages[slot // size, number, slot % size] = token[number * piece : (number + 1) * piece]
    return cache


@pytest.mark.parametrize("mode", ["Norm", "PA_NZ"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_scatter_pa_kv_cache(mode, dtype):
    need_torch(2, 13)  # torchair of 2.8 has a converter that takes no cache_mode
    nz, heads, size = mode == "PA_NZ", 2, 4
    piece = 32 // torch.empty((), dtype=dtype).element_size()
    key, value = (torch.randint(-9, 9, (5, heads, width)).to(dtype) for width in (32, 64))
    shapes = [(3, heads * w // piece, size, piece) if nz else (3, size, heads, w) for w in (32, 64)]
    caches = [torch.randint(-9, 9, shape).to(dtype) for shape in shapes]
    slots = torch.tensor([7, 0, -1, 11, 2], dtype=torch.int32)
    expected = [paged(c, t.flatten(1), slots.tolist(), size, nz) for c, t in zip(caches, (key, value))]

    def write(key, value, key_cache, value_cache, slots):
        torch_npu.npu_scatter_pa_kv_cache(key, value, key_cache, value_cache, slots, cache_mode=mode)

    def write_copies(key, value, key_cache, value_cache, slots):
        operator = torch.ops.npu.npu_scatter_pa_kv_cache_functional
        return operator(key, value, key_cache, value_cache, slots, cache_mode=mode)

    exact(write, [key, value, *caches, slots], [key, value, *expected])
    exact(
        write_copies,
        [key, value, *caches, slots],
        [*expected, key, value, *caches],
        modes=("eager", "static") if nz else ("eager",),
    )


def test_slots_beyond_the_cache_are_refused():
    cache = random(2, 4, 1, 16).npu()
    key = random(1, 1, 16).npu()
    slots = torch.tensor([8], dtype=torch.int32).npu()
    with pytest.raises(ValueError, match="must be below 8"):
        torch_npu.npu_scatter_pa_kv_cache(key, key, cache, cache, slots, cache_mode="Norm")


@pytest.mark.parametrize("nz", [False, True])
@pytest.mark.parametrize("cumsum", [False, True])
def test_gather_pa_kv_cache(nz, cumsum):
    size, heads, width = 4, 2, 16
    rows = random(6, size, heads, width)
    cache = rows.flatten(2).view(6, size, 2, 16).transpose(1, 2).contiguous() if nz else rows
    lengths = [5, 0, 9]
    table = torch.tensor([[3, 1, 9], [0, 0, 0], [5, 2, 4]], dtype=torch.int32)
    offset = torch.tensor([4, 0, 0], dtype=torch.int32)
    out = torch.full((16, heads, width), 7.0, dtype=torch.bfloat16)
    expected, at = out.clone(), 0
    for sequence, length in enumerate(lengths):
        for j in range(length):
            column = int(offset[sequence]) // size + j // size
            page = int(table[sequence, column]) if column < 3 else -1
            expected[at] = rows[page, j % size] if 0 <= page < 6 else 0
            at += 1
    given = torch.tensor([0, *torch.tensor(lengths).cumsum(0)] if cumsum else lengths, dtype=torch.int32)

    def gather(cache, table, lengths, key, value, offset):
        options = dict(seq_offset=offset, is_seq_lens_cumsum=cumsum)
        torch.ops.npu.npu_gather_pa_kv_cache(cache, cache, table, lengths, key, value, **options)

    def gather_copies(cache, table, lengths, key, value, offset):
        options = dict(seq_offset=offset, is_seq_lens_cumsum=cumsum)
        return torch.ops.npu.npu_gather_pa_kv_cache_functional(cache, cache, table, lengths, key, value, **options)

    exact(gather, [cache, table, given, out, out, offset], [None, None, None, expected, expected], modes=("eager",))
    kept = [cache, table, given, out, out, offset]
    exact(gather_copies, kept, [expected, expected, *kept], modes=("eager",))


def normed(x: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + epsilon).sqrt() * gamma.double()


def quantised(x: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype) if scale is None else (x * scale.double()).round().clamp(-128, 127).to(torch.int8)


CACHE_MODES = ["Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ"]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("mode", CACHE_MODES)
def test_kv_rmsnorm_rope_cache(mode, int8):
    batch, length, size, rank, width = 2, 5, 4, 64, 32
    kv, gamma = random(batch, 1, length, rank + width), random(rank)
    cos, sin = random(batch, 1, length, width, seed=1), random(batch, 1, length, width, seed=2)
    scales = (torch.rand(width) + 1, torch.rand(rank) + 1) if int8 else (None, None)
    dtype = torch.int8 if int8 else torch.bfloat16
    k = turned(kv[..., rank:].float(), cos, sin, "interleave-half").double()
    ckv = normed(kv[..., :rank], gamma, 1e-5)
    if mode == "Norm":
        index = torch.tensor([[3, 4, 5, -1, 7], [0, 2, 1, 6, 3]])
        shape, slots = (batch, 1, 8), [s if s < 0 else s + 8 * b for b in range(batch) for s in index[b].tolist()]
    elif "BLK" in mode:
        index = torch.tensor([8, 0, 4, 12])  # of pages: two a sequence
        shape = (4, size, 1)
        slots = [int(index[b * 2 + s // size]) + s % size for b in range(batch) for s in range(length)]
    else:
        index = torch.tensor([3, 4, 5, -1, 7, 0, 2, 1, 15, 9])
        shape, slots = (4, size, 1), index.tolist()
    caches = [torch.randint(-9, 9, (*shape, w)).to(dtype) for w in (width, rank)]
    expected = [
        paged(cache, quantised(tokens, scale, dtype).flatten(0, 2), slots, size, mode.endswith("NZ"))
        for cache, tokens, scale in zip(caches, (k, ckv), scales)
    ]

    def write(kv, gamma, cos, sin, index, k_cache, ckv_cache, k_scale, ckv_scale):
        return torch_npu.npu_kv_rmsnorm_rope_cache(
            kv, gamma, cos, sin, index, k_cache, ckv_cache,
            k_rope_scale=k_scale, c_kv_scale=ckv_scale, cache_mode=mode, is_output_kv=True,
        )  # fmt: skip

    args = [kv, gamma, cos, sin, index, *caches, *scales]
    tolerance = dict(atol=1.0) if int8 else ONE_ROUNDING
    wanted = [*expected, k.bfloat16(), ckv.bfloat16()]
    check(write, args, wanted, modes=("eager", "static") if mode == "PA" else ("eager",), **tolerance)


def test_kv_rmsnorm_rope_cache_v2_is_the_first_by_reference():
    kv, gamma, angle = random(2, 1, 1, 96), random(64), random(2, 1, 1, 32)
    index, caches = torch.tensor([5, 2]), [random(3, 4, 1, 32), random(3, 4, 1, 64)]

    def first(kv, gamma, angle, index, k_cache, ckv_cache):
        return torch_npu.npu_kv_rmsnorm_rope_cache(kv, gamma, angle, angle, index, k_cache, ckv_cache, cache_mode="PA")[
            :2
        ]

    def second(kv, gamma, angle, index, k_cache, ckv_cache):
        torch_npu.npu_kv_rmsnorm_rope_cache_v2(kv, gamma, angle, angle, index, k_cache, ckv_cache, cache_mode="PA")
        return k_cache, ckv_cache

    args = [kv, gamma, angle, index, *caches]
    npu = [t.npu() for t in args]
    expected = [t.cpu() for t in first(*npu)]
    check(second, args, expected)


@pytest.mark.parametrize("int8", [False, True])
def test_qkv_rms_norm_rope_cache(int8):
    batch, length, heads, width, size = 2, 3, (4, 2, 2), 32, 4
    qkv, q_gamma, k_gamma = random(batch * length, sum(heads) * width), random(width), random(width, seed=1)
    cos, sin = random(batch * length, width), random(batch * length, width, seed=1)
    dtype = torch.int8 if int8 else torch.bfloat16
    piece = 32 // torch.empty((), dtype=dtype).element_size()
    caches = [torch.randint(-9, 9, (3, 2 * width // piece, size, piece)).to(dtype) for _ in range(2)]
    scales = [torch.rand(2, width) + 0.5 for _ in range(2)] if int8 else [None, None]
    index = torch.tensor([7, 0, -1, 11, 2, 5])
    parts = qkv.view(-1, sum(heads), width).split(heads, 1)
    angles = cos.unsqueeze(1).double(), sin.unsqueeze(1).double()

    def rope(x):
        first, second = x.chunk(2, -1)
        return x * angles[0] + torch.cat([-second, first], -1) * angles[1]

    q, k = rope(normed(parts[0], q_gamma, 1e-6)), rope(normed(parts[1], k_gamma, 1e-6))
    rows = [
        x.to(dtype) if scale is None else (x / scale.double()).round().clamp(-128, 127).to(dtype)
        for x, scale in zip((k, parts[2].double()), scales)
    ]
    expected = [paged(c, r.flatten(1), index.tolist(), size, True) for c, r in zip(caches, rows)]
    q_out = torch.zeros(batch * length, heads[0] * width, dtype=torch.bfloat16)
    sizes = [batch, length, sum(heads), width]

    def write(qkv, q_gamma, k_gamma, cos, sin, index, q_out, k_cache, v_cache, k_scale, v_scale):
        torch_npu.npu_qkv_rms_norm_rope_cache(
            qkv, q_gamma, k_gamma, cos, sin, index, q_out, k_cache, v_cache, sizes, list(heads),
            k_scale=k_scale, v_scale=v_scale,
        )  # fmt: skip
        return q_out, k_cache, v_cache

    args = [qkv, q_gamma, k_gamma, cos, sin, index, q_out, *caches, *scales]
    tolerance = dict(atol=1.0, rtol=2**-7) if int8 else ONE_ROUNDING
    check(write, args, [q.flatten(1).bfloat16(), *expected], modes=("eager", "static"), **tolerance)


def test_a_page_has_whole_pieces():
    kv, gamma, angle = random(1, 1, 1, 40).npu(), random(32).npu(), random(1, 1, 1, 8).npu()
    caches = random(2, 4, 1, 8).npu(), random(2, 4, 1, 32).npu()
    with pytest.raises(ValueError, match="multiple of 16 elements"):
        torch_npu.npu_kv_rmsnorm_rope_cache(
            kv, gamma, angle, angle, torch.tensor([0]).npu(), *caches, cache_mode="PA_NZ"
        )
