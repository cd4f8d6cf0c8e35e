"""Operators that compute and communicate, eagerly and in a graph, on every rank against the whole product. Prints "equal NAME RANK"."""

import os

import torch
import torch.distributed as dist
import torch_npu
import torchair

import moe_graph

dist.init_process_group("hccl")
RANK, SIZE = dist.get_rank(), dist.get_world_size()
torch.npu.set_device(RANK % torch.npu.device_count())
NAME = dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(RANK)
ROWS, WIDTH, OUT, EXPERTS = 2 * SIZE, 256, 32, 2


def of(rank: int, *shape: int, salt: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """What a rank holds: everyone can make it."""
    generator = torch.Generator().manual_seed(1000 * salt + rank)
    if dtype == torch.int8:
        return torch.randint(-9, 9, shape, generator=generator).to(dtype)
    return torch.randn(*shape, generator=generator).to(dtype)


def check(name, function, given, expected):
    for mode in ("eager", "static"):
        torch._dynamo.reset()
        backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
        called = (
            function if mode == "eager" else torch.compile(function, backend=backend, dynamic=False, fullgraph=True)
        )
        found = called(*[tensor.npu() for tensor in given])
        found = [tensor.cpu() for tensor in (found if isinstance(found, (list, tuple)) else [found])]
        for got, wanted in zip(found, expected):
            assert got.dtype == wanted.dtype and got.shape == wanted.shape, (name, mode, got.dtype, got.shape)
            torch.testing.assert_close(got.double(), wanted.double(), rtol=2**-7, atol=2**-4)
    os.write(1, f"equal {name} {RANK}\n".encode())  # in one piece: the ranks share a pipe


everyone = [of(rank, ROWS, WIDTH) for rank in range(SIZE)]
weight = of(RANK, WIDTH, OUT, salt=1)
gathered = torch.cat(everyone)
check(
    "all_gather_base_mm",
    lambda x, w: torch_npu.npu_all_gather_base_mm(x, w, NAME, SIZE),
    [everyone[RANK], weight],
    [(gathered.double() @ weight.double()).bfloat16(), gathered],
)
products = [of(r, ROWS, WIDTH).double() @ of(r, WIDTH, OUT, salt=1).double() for r in range(SIZE)]
check(
    "mm_reduce_scatter_base",
    lambda x, w: torch_npu.npu_mm_reduce_scatter_base(x, w, NAME, SIZE),
    [everyone[RANK], weight],
    [sum(products)[2 * RANK : 2 * RANK + 2].bfloat16()],
)
check(
    "mm_all_reduce_base",
    lambda x, w: torch_npu.npu_mm_all_reduce_base(x, w, NAME),
    [everyone[RANK], weight],
    [sum(products).bfloat16()],
)
scales = [torch.rand(OUT, generator=torch.Generator().manual_seed(r)).bfloat16() / 50 for r in range(SIZE)]
quantised = [
    of(r, ROWS, WIDTH, dtype=torch.int8).double()
    @ of(r, WIDTH, OUT, salt=1, dtype=torch.int8).double()
    * scales[r].double()
    for r in range(SIZE)
]
check(
    "mm_all_reduce_base int8",
    lambda x, w, s: torch_npu.npu_mm_all_reduce_base(x, w, NAME, dequant_scale=s),
    [of(RANK, ROWS, WIDTH, dtype=torch.int8), of(RANK, WIDTH, OUT, salt=1, dtype=torch.int8), scales[RANK]],
    [sum(quantised).bfloat16()],
)

# COUNTS[sender][receiver][expert of the receiver]: tokens, some of them none.
COUNTS = [[[(s + 2 * r + e) % 4 for e in range(EXPERTS)] for r in range(SIZE)] for s in range(SIZE)]


def total(rank):
    return sum(sum(row) for row in COUNTS[rank])


def chunks(rank):
    """(receiver, expert) -> the tokens that a rank sends there."""
    flat = [count for row in COUNTS[rank] for count in row]
    parts = iter(of(rank, total(rank), WIDTH, salt=2).split(flat))
    return {(r, e): next(parts) for r in range(SIZE) for e in range(EXPERTS)}


send = [count for row in COUNTS[RANK] for count in row]
receive = [COUNTS[s][RANK][e] for s in range(SIZE) for e in range(EXPERTS)]
experts = of(RANK, EXPERTS, WIDTH, OUT, salt=3) / 4
shared_x, shared_w = of(RANK, 3, WIDTH, salt=4), of(RANK, WIDTH, OUT, salt=5) / 4
routed = torch.cat([torch.cat([chunks(s)[RANK, e] for s in range(SIZE)]) for e in range(EXPERTS)])
results = torch.cat(
    [torch.cat([chunks(s)[RANK, e] for s in range(SIZE)]).double() @ experts[e].double() for e in range(EXPERTS)]
)
check(
    "alltoallv_gmm",
    lambda x, w, mx, mw: torch_npu.npu_alltoallv_gmm(
        x, w, NAME, SIZE, send, receive, mm_x=mx, mm_weight=mw, permute_out_flag=True
    ),
    [of(RANK, total(RANK), WIDTH, salt=2), experts, shared_x, shared_w],
    [results.bfloat16(), (shared_x.double() @ shared_w.double()).bfloat16(), routed],
)


def sent_back(rank):
    """The products of a rank's rows in expert order, by (owner, expert)."""
    sizes = [COUNTS[s][rank][e] for e in range(EXPERTS) for s in range(SIZE)]
    parts = iter(of(rank, sum(sizes), WIDTH, salt=6).split(sizes))
    weights = of(rank, EXPERTS, WIDTH, OUT, salt=3) / 4
    return {(s, e): next(parts).double() @ weights[e].double() for e in range(EXPERTS) for s in range(SIZE)}


back = torch.cat([sent_back(r)[RANK, e] for r in range(SIZE) for e in range(EXPERTS)])
check(
    "gmm_alltoallv",
    lambda x, w: torch_npu.npu_gmm_alltoallv(x, w, NAME, SIZE, receive, send)[0],
    [of(RANK, sum(receive), WIDTH, salt=6), experts],
    [back.bfloat16()],
)
# The rows of every rank side by side: [2, SIZE * WIDTH] of everyone's ROWS = 2 * SIZE rows.
beside = torch.cat([everyone[s][2 * RANK : 2 * RANK + 2] for s in range(SIZE)], 1)
wide, bias = of(RANK, SIZE * WIDTH, OUT, salt=7), of(RANK, OUT, salt=8, dtype=torch.float32)
check(
    "all_to_all_matmul",
    lambda x, w, b: torch_npu.npu_all_to_all_matmul(x, w, NAME, SIZE, b),
    [everyone[RANK], wide, bias],
    [(beside.double() @ wide.double() + bias.double()).bfloat16(), beside],
)
COLUMNS = 8
whole = [of(r, ROWS, WIDTH).double() @ of(r, WIDTH, COLUMNS * SIZE, salt=9).double() for r in range(SIZE)]
check(
    "matmul_all_to_all",
    lambda x, w: torch_npu.npu_matmul_all_to_all(x, w, NAME, SIZE),
    [everyone[RANK], of(RANK, WIDTH, COLUMNS * SIZE, salt=9)],
    [torch.cat([y[:, COLUMNS * RANK : COLUMNS * (RANK + 1)] for y in whole]).bfloat16()],
)
check(
    "distribute_barrier",
    lambda x: torch.ops.npu._npu_distribute_barrier(x, NAME, SIZE) + 1,
    [everyone[RANK]],
    [everyone[RANK] + 1],
)


def float8(rank, *shape, salt):
    return (of(rank, *shape, salt=salt) / 2).to(torch.float8_e4m3fn)


narrow, scale = float8(RANK, SIZE * WIDTH, OUT, salt=10), of(RANK, OUT, salt=11, dtype=torch.float32)
step = beside.double().abs().amax(1, keepdim=True) / 448
rows = (beside.double() / step).float().to(torch.float8_e4m3fn).double()
check(
    "all_to_all_quant_matmul",
    lambda x, w, s: torch_npu.npu_all_to_all_quant_matmul(
        x, w, NAME, SIZE, x2_scale=s, x1_quant_mode=7, x2_quant_mode=2, x1_quant_dtype=24
    )[0],
    [everyone[RANK], narrow, scale],
    [(rows @ narrow.double() * step * scale.double()).float()],
)


def of_float8(rank):
    x, w = float8(rank, ROWS, WIDTH, salt=12), float8(rank, WIDTH, COLUMNS * SIZE, salt=13)
    return x, w, torch.rand(ROWS, generator=torch.Generator().manual_seed(rank)), of(rank, COLUMNS * SIZE, salt=14)


whole = [x.double() @ w.double() * s.double()[:, None] * t.double() for x, w, s, t in map(of_float8, range(SIZE))]
x8, w8, s8, t8 = of_float8(RANK)
check(
    "quant_matmul_all_to_all",
    lambda x, w, s, t: torch_npu.npu_quant_matmul_all_to_all(
        x, w, NAME, SIZE, x1_scale=s, x2_scale=t, x1_quant_mode=3, x2_quant_mode=2
    ),
    [x8, w8, s8, t8.float()],
    [torch.cat([y[:, COLUMNS * RANK : COLUMNS * (RANK + 1)] for y in whole]).float()],
)

# As Ascend 950 has them: MX, whose scales travel with the rows, and hifloat8, one scale a rank.
moe_graph.set_product("950")
HIFLOAT8, E8M0 = torch_npu.hifloat8, torch_npu.float8_e8m0fnu


def bytes_of(rank, *shape, salt, low=0, high=256):
    generator = torch.Generator().manual_seed(1000 * salt + rank)
    return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)


def of_hifloat8(codes):
    return torch_npu.npu_dtype_cast(codes.npu(), torch.float32, HIFLOAT8).cpu().double()


def spread(codes, axis):
    """Scales in pairs [..., n, ..., 2] -> one for each element along `axis`."""
    factors = 2.0 ** (codes.double() - 127)
    return factors.movedim(-1, axis + 1).flatten(axis, axis + 1).repeat_interleave(32, axis)


PLACES = WIDTH // 64


def narrow_rows(rank, salt):
    """A rank's rows, their scales, and both multiplied, of as many rows as it sends."""
    rows = total(rank) if salt == 15 else sum(sum(COUNTS[s][rank]) for s in range(SIZE))
    x, scale = float8(rank, rows, WIDTH, salt=salt), bytes_of(rank, rows, PLACES, 2, salt=salt + 1, low=124, high=130)
    return x, scale, x.double() * spread(scale, 1)


weights8 = float8(RANK, EXPERTS, WIDTH, OUT, salt=17)
weight_scales = bytes_of(RANK, EXPERTS, PLACES, OUT, 2, salt=18, low=124, high=130)


def matrices_of(rank):
    scales = bytes_of(rank, EXPERTS, PLACES, OUT, 2, salt=18, low=124, high=130)
    return float8(rank, EXPERTS, WIDTH, OUT, salt=17).double() * spread(scales, 1)


def cut(rows, rank):
    flat = [count for row in COUNTS[rank] for count in row]
    parts = iter(rows.split(flat))
    return {(r, e): next(parts) for r in range(SIZE) for e in range(EXPERTS)}


def received(salt, which):
    """What of every rank's rows comes here, a list by expert."""
    return [torch.cat([cut(narrow_rows(s, salt)[which], s)[RANK, e] for s in range(SIZE)]) for e in range(EXPERTS)]


products8 = torch.cat([rows @ matrices_of(RANK)[e] for e, rows in enumerate(received(15, 2))]) / 64
x8, scale8, _ = narrow_rows(RANK, 15)
modes = dict(gmm_x_quant_mode=6, gmm_weight_quant_mode=6, gmm_x_scale_dtype=E8M0, gmm_weight_scale_dtype=E8M0)
check(
    "alltoallv_quant_gmm MX",
    lambda x, w, s, t: [
        y / 64 if y.dtype == torch.bfloat16 else y.float()
        for y in torch_npu.npu_alltoallv_quant_gmm(
            x, w, s, t, NAME, SIZE, send, receive, torch.bfloat16, permute_out_flag=True, **modes
        )
        if y is not None
    ],
    [x8, weights8, scale8, weight_scales],
    [products8.bfloat16(), torch.cat(received(15, 0)).float()],
)
tt = dict.fromkeys(("gmm_x_quant_mode", "gmm_weight_quant_mode", "mm_x_quant_mode", "mm_weight_quant_mode"), 1)
tt.update(dict.fromkeys(("gmm_x_dtype", "gmm_weight_dtype", "mm_x_dtype", "mm_weight_dtype"), HIFLOAT8))
codes = {s: bytes_of(s, total(s), WIDTH, salt=20, low=8, high=48) for s in range(SIZE)}  # positive ones, near 1
weight_codes = bytes_of(RANK, EXPERTS, WIDTH, OUT, salt=21, low=8, high=48)
mm_codes = bytes_of(RANK, 3, WIDTH, salt=22, low=8, high=48), bytes_of(RANK, WIDTH, OUT, salt=23, low=8, high=48)
ones = [torch.tensor([1 / (32 + RANK)]), torch.tensor([1 / 64])]
by_expert = [torch.cat([cut(codes[s], s)[RANK, e] for s in range(SIZE)]) for e in range(EXPERTS)]
of_codes = torch.cat([of_hifloat8(rows) @ of_hifloat8(weight_codes[e]) for e, rows in enumerate(by_expert)])
check(
    "alltoallv_quant_gmm hifloat8",
    lambda x, w, s, t, mx, mw: torch_npu.npu_alltoallv_quant_gmm(
        x,
        w,
        s,
        t,
        NAME,
        SIZE,
        send,
        receive,
        torch.float16,
        mm_x=mx,
        mm_weight=mw,
        mm_x_scale=s,
        mm_weight_scale=t,
        mm_y_dtype=torch.bfloat16,
        **tt,
    )[:2],
    [codes[RANK], weight_codes, *ones, *mm_codes],
    [
        (of_codes * ones[0] * ones[1]).half(),
        (of_hifloat8(mm_codes[0]) @ of_hifloat8(mm_codes[1]) * ones[0] * ones[1]).bfloat16(),
    ],
)


def sent_back8(rank):
    """The products of a rank's rows in expert order, by (owner, expert)."""
    sizes = [COUNTS[s][rank][e] for e in range(EXPERTS) for s in range(SIZE)]
    parts = iter(narrow_rows(rank, 25)[2].split(sizes))
    return {(s, e): next(parts) @ matrices_of(rank)[e] for e in range(EXPERTS) for s in range(SIZE)}


x8, scale8, _ = narrow_rows(RANK, 25)
check(
    "quant_gmm_alltoallv MX",
    lambda x, w, s, t: (
        torch_npu.npu_quant_gmm_alltoallv(
            x, w, s, t, NAME, SIZE, receive, send, torch.bfloat16, comm_quant_mode=0, **modes
        )[0]
        / 64
    ),
    [x8, weights8, scale8, weight_scales],
    [(torch.cat([sent_back8(r)[RANK, e] for r in range(SIZE) for e in range(EXPERTS)]) / 64).bfloat16()],
)
dist.barrier()
dist.destroy_process_group()
