"""Each collective in a compiled graph, on every rank, against what the ranks' numbers must give. Prints "equal" and the name of each."""

import os

import torch
import torch.distributed as dist
import torchair

torchair.patch_for_hcom()
dist.init_process_group("hccl")
RANK, SIZE = dist.get_rank(), dist.get_world_size()
torch.npu.set_device(RANK % torch.npu.device_count())
HALVES = [dist.new_group(ranks) for ranks in ([0], list(range(1, SIZE)))]
MINE = HALVES[0] if RANK == 0 else HALVES[1]


def of(rank: int, rows: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers that a rank holds: everyone knows them."""
    return (torch.arange(rows * 3).view(rows, 3) + 100 * rank).to(dtype)


def run(name, function, given, expected, dynamic=False):
    torch._dynamo.reset()
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    compiled = torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)
    found = compiled(*[tensor.npu() for tensor in given])
    found = [tensor.cpu() for tensor in (found if isinstance(found, (list, tuple)) else [found])]
    for got, wanted in zip(found, expected):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted), (name, RANK, got, wanted)
    assert len(found) == len(expected)
    os.write(1, f"equal {name} {RANK}\n".encode())  # in one piece: the ranks share a pipe


def reduce(op):
    def function(x):
        x = x + 1
        dist.all_reduce(x, op=op)
        return x

    return function


everyone = [of(rank) + 1 for rank in range(SIZE)]
stacked = torch.stack(everyone)
run("all_reduce sum", reduce(dist.ReduceOp.SUM), [of(RANK)], [stacked.sum(0)])
run("all_reduce sum dynamic", reduce(dist.ReduceOp.SUM), [of(RANK)], [stacked.sum(0)], dynamic=True)
run("all_reduce max", reduce(dist.ReduceOp.MAX), [of(RANK)], [stacked.amax(0)])
half = torch.stack([of(rank, dtype=torch.bfloat16) + 1 for rank in range(SIZE)])
run("all_reduce bfloat16", reduce(dist.ReduceOp.SUM), [of(RANK, dtype=torch.bfloat16)], [half.sum(0)])


def gather(x):
    out = x.new_empty((SIZE * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(out, x)
    return out


run("all_gather_into_tensor", gather, [of(RANK)], [torch.cat([of(rank) for rank in range(SIZE)])])


def gather_list(x):
    parts = [torch.empty_like(x) for _ in range(SIZE)]
    dist.all_gather(parts, x)
    return parts


run("all_gather", gather_list, [of(RANK)], [of(rank) for rank in range(SIZE)])


def scatter(x):
    out = x.new_empty((x.shape[0] // SIZE, *x.shape[1:]))
    dist.reduce_scatter_tensor(out, x)
    return out


whole = torch.stack([of(rank, 2 * SIZE) for rank in range(SIZE)]).sum(0)
run("reduce_scatter_tensor", scatter, [of(RANK, 2 * SIZE)], [whole[2 * RANK : 2 * RANK + 2]])


def exchange(x):
    out = torch.empty_like(x)
    dist.all_to_all_single(out, x)
    return out


parts = [of(rank, SIZE)[RANK : RANK + 1] for rank in range(SIZE)]
run("all_to_all_single", exchange, [of(RANK, SIZE)], [torch.cat(parts)])

SEND = [[(sender + receiver) % 3 for receiver in range(SIZE)] for sender in range(SIZE)]


def exchange_uneven(x):
    out = x.new_empty((sum(row[RANK] for row in SEND), 3))
    dist.all_to_all_single(out, x, [row[RANK] for row in SEND], SEND[RANK])
    return out


parts = [of(rank, sum(SEND[rank])).split(SEND[rank])[RANK] for rank in range(SIZE)]
run("all_to_all_single uneven", exchange_uneven, [of(RANK, sum(SEND[RANK]))], [torch.cat(parts)])


def spread(x):
    x = x * 2
    dist.broadcast(x, SIZE - 1)
    return x


run("broadcast", spread, [of(RANK)], [of(SIZE - 1) * 2])


def ring(x):
    received = torch.empty_like(x)
    if RANK % 2 == 0:
        dist.send(x, (RANK + 1) % SIZE)
        dist.recv(received, (RANK - 1) % SIZE)
    else:
        dist.recv(received, (RANK - 1) % SIZE)
        dist.send(x, (RANK + 1) % SIZE)
    return received + 1


if SIZE % 2 == 0:
    run("send and recv", ring, [of(RANK)], [of((RANK - 1) % SIZE) + 1])


def two_groups(x):
    a, b = x + 1, x * 2
    dist.all_reduce(a, group=MINE)
    dist.all_reduce(b)
    return a, b


own = [0] if RANK == 0 else list(range(1, SIZE))
expected = [sum(of(rank) + 1 for rank in own), sum(of(rank) * 2 for rank in range(SIZE))]
run("two groups", two_groups, [of(RANK)], expected)


def in_order(x):
    """Independent collectives: each rank must take them in one order, whatever reads them first."""
    a, b = x + 1, x * 2
    dist.all_reduce(a)
    gathered = gather(b)
    return (gathered, a) if RANK % 2 else (a, gathered)


results = [stacked.sum(0), torch.cat([of(rank) * 2 for rank in range(SIZE)])]
run("in order", in_order, [of(RANK)], results[::-1] if RANK % 2 else results)

dist.barrier()
dist.destroy_process_group()
