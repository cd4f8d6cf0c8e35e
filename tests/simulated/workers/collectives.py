"""One rank of a group: runs every case below on NPU tensors and writes {case: "ok" or the traceback}.

Arguments: the file of the rendezvous, the folder for the results. RANK and WORLD_SIZE are in the environment.
"""

import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
import torch_npu
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._pytree import tree_map

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
RANKS = range(SIZE)
DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
]


def values(rank, dtype=torch.float32):
    """What rank `rank` brings, on the CPU: different per rank and element."""
    return (torch.arange(6) + 1 + 2 * rank).to(dtype).view(2, 3)


def mine(dtype=torch.float32):
    return values(RANK, dtype).npu()


def same(got, expected):
    assert got.device.type == "npu", got.device
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0)


def refuses(function, error, text):
    try:
        function()
    except error as raised:
        assert text in str(raised), str(raised)
    else:
        raise AssertionError(f"nothing raised, {text!r} was expected")


def case_broadcast():
    for root in RANKS:
        for dtype in [*DTYPES, torch.bool, torch.complex64, torch.float8_e4m3fn]:
            tensor = mine(dtype)
            dist.broadcast(tensor, root)
            assert torch.equal(tensor.cpu().view(torch.uint8), values(root, dtype).view(torch.uint8)), dtype


def case_all_reduce_of_every_dtype():
    for dtype in DTYPES:
        tensor = mine(dtype)
        dist.all_reduce(tensor)
        same(tensor, sum(values(rank, dtype) for rank in RANKS))


def case_all_reduce_by_every_reduction():
    stacked = torch.stack([values(rank) for rank in RANKS])
    expected = {"SUM": stacked.sum(0), "PRODUCT": stacked.prod(0), "MIN": stacked.amin(0), "MAX": stacked.amax(0)}
    expected["AVG"] = stacked.mean(0)
    for name, result in expected.items():
        tensor = mine()
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, name))
        torch.testing.assert_close(tensor.cpu(), result)
    truth = torch.tensor([RANK == 0, False, True]).npu()
    dist.all_reduce(truth)
    same(truth, torch.tensor([True, False, True]))


def case_average_of_integers_goes_toward_zero():
    for dtype in (torch.int16, torch.int32, torch.int64):
        tensor = torch.tensor([3 * RANK - 4, 7, -7]).to(dtype).npu()
        dist.all_reduce(tensor, op=dist.ReduceOp.AVG)
        total = sum(3 * rank - 4 for rank in RANKS)
        same(tensor, torch.tensor([int(total / SIZE), 7, -7]).to(dtype))


def case_sum_of_products():
    half = torch_npu.distributed._make_hccl_premul_sum(0.5)
    tensor = mine()
    dist.all_reduce(tensor, op=half)
    torch.testing.assert_close(tensor.cpu(), sum(values(rank) for rank in RANKS) / 2)
    scattered = torch.zeros(3).npu()
    dist.reduce_scatter_tensor(scattered, torch.full((3 * SIZE,), RANK + 1.0).npu(), op=half)
    same(scattered, torch.full((3,), sum(rank + 1.0 for rank in RANKS) / 2))
    refuses(lambda: dist.all_reduce(mine(torch.int32), op=half), RuntimeError, "PreMulSum Data type must be")


def case_messages_to_oneself():
    received = [torch.zeros(2).npu() for _ in range(2)]
    sent = [torch.full((2,), 10.0 * RANK + each).npu() for each in range(2)]
    batch = [dist.P2POp(dist.irecv, each, RANK) for each in received] + [
        dist.P2POp(dist.isend, each, RANK) for each in sent
    ]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    for each, (got, given) in enumerate(zip(received, sent)):
        same(got, torch.full((2,), 10.0 * RANK + each))
        same(given, torch.full((2,), 10.0 * RANK + each))


def case_reductions_that_hccl_refuses():
    for name in ("BAND", "BOR", "BXOR"):
        operation = getattr(dist.ReduceOp, name)
        refuses(
            lambda operation=operation: dist.all_reduce(mine(torch.int32), op=operation),
            RuntimeError,
            f"ReduceOp.{name} with HCCL",
        )


def case_reduce():
    for root in RANKS:
        tensor = mine(torch.int16)
        dist.reduce(tensor, root)
        same(tensor, sum(values(rank, torch.int16) for rank in RANKS) if root == RANK else values(RANK, torch.int16))


def case_all_gather():
    parts = [torch.zeros(2, 3).npu() for _ in RANKS]
    dist.all_gather(parts, mine())
    for rank in RANKS:
        same(parts[rank], values(rank))


def case_all_gather_of_different_sizes():
    parts = [torch.zeros(rank + 1, 2).npu() for rank in RANKS]
    dist.all_gather(parts, torch.full((RANK + 1, 2), float(RANK)).npu())
    for rank in RANKS:
        same(parts[rank], torch.full((rank + 1, 2), float(rank)))


def case_all_gather_into_tensor():
    out = torch.zeros(2 * SIZE, 3).npu()
    dist.all_gather_into_tensor(out, mine())
    same(out, torch.cat([values(rank) for rank in RANKS]))
    refuses(lambda: dist.all_gather_into_tensor(out[1:], mine()), ValueError, "world size times input size")


def case_gather():
    for root in RANKS:
        parts = [torch.zeros(2, 3).npu() for _ in RANKS] if root == RANK else None
        dist.gather(mine(), parts, dst=root)
        for rank, part in enumerate(parts or []):
            same(part, values(rank))


def case_scatter():
    for root in RANKS:
        out = torch.zeros(2, 3).npu()
        dist.scatter(out, [values(rank + 5).npu() for rank in RANKS] if root == RANK else None, src=root)
        same(out, values(RANK + 5))


def case_reduce_scatter():
    out = torch.zeros(2, 3).npu()
    dist.reduce_scatter(out, [values(RANK + 10 * part).npu() for part in RANKS])
    same(out, sum(values(rank + 10 * RANK) for rank in RANKS))


def case_reduce_scatter_of_different_sizes():
    out = torch.zeros(RANK + 1).npu()
    dist.reduce_scatter(out, [torch.full((part + 1,), float(RANK + part)).npu() for part in RANKS])
    same(out, torch.full((RANK + 1,), float(sum(rank + RANK for rank in RANKS))))


def case_reduce_scatter_tensor():
    for name, divisor in (("SUM", 1), ("AVG", SIZE)):
        out = torch.zeros(2, 3).npu()
        given = torch.cat([values(RANK + 10 * part) for part in RANKS])
        kept = given.npu()
        dist.reduce_scatter_tensor(out, kept, op=getattr(dist.ReduceOp, name))
        torch.testing.assert_close(out.cpu(), sum(values(rank + 10 * RANK) for rank in RANKS) / divisor)
        same(kept, given)


def case_all_to_all():
    out = [torch.zeros(rank + RANK + 1).npu() for rank in RANKS]
    dist.all_to_all(out, [torch.full((RANK + to + 1,), float(10 * RANK + to)).npu() for to in RANKS])
    for rank in RANKS:
        same(out[rank], torch.full((rank + RANK + 1,), float(10 * rank + RANK)))


def case_all_to_all_single():
    given = torch.arange(SIZE * 2).view(SIZE, 2) + 100 * RANK
    out = torch.zeros(SIZE, 2, dtype=torch.int64).npu()
    dist.all_to_all_single(out, given.npu())
    same(out, torch.stack([torch.arange(SIZE * 2).view(SIZE, 2)[RANK] + 100 * rank for rank in RANKS]))


def case_all_to_all_single_with_splits():
    # Rank i sends i + j rows to rank j, so some send nothing.
    sent, received = [RANK + to for to in RANKS], [rank + RANK for rank in RANKS]
    given = torch.cat([torch.full((count, 3), RANK * 10 + to, dtype=torch.int8) for to, count in enumerate(sent)])
    expected = [torch.full((count, 3), rank * 10 + RANK, dtype=torch.int8) for rank, count in enumerate(received)]
    for kind in (list, tuple, numpy.array):  # what torch's own binding takes
        out = torch.zeros(sum(received), 3, dtype=torch.int8).npu()
        dist.all_to_all_single(out, given.npu(), kind(received), kind(sent))
        same(out, torch.cat(expected))


def case_send_and_recv():
    following, previous = (RANK + 1) % SIZE, (RANK - 1) % SIZE
    sending = dist.isend(mine(), following)
    out = torch.zeros(2, 3).npu()
    assert dist.recv(out, previous) == previous
    sending.wait()
    same(out, values(previous))


def case_batch_isend_irecv():
    following, previous = (RANK + 1) % SIZE, (RANK - 1) % SIZE
    out = torch.zeros(2, 3).npu()
    operations = [dist.P2POp(dist.isend, mine(), following), dist.P2POp(dist.irecv, out, previous)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    same(out, values(previous))


def case_handles():
    tensor = mine()
    work = dist.all_reduce(tensor, async_op=True)
    doubled = work.get_future().then(lambda future: future.value()[0] * 2)
    assert work.wait()
    assert work.is_completed() and work.is_success() and work.exception() is None
    same(tensor, sum(values(rank) for rank in RANKS))
    same(doubled.wait(), 2 * sum(values(rank) for rank in RANKS))
    assert doubled.value().device == torch.device("npu", torch.npu.current_device())


def case_a_wait_for_the_device_waits_for_handles_that_were_dropped():
    sums, means = [mine(torch.bfloat16) for _ in range(8)], [mine(torch.int32) for _ in range(8)]
    for some, others in zip(sums, means):
        dist.all_reduce(some, async_op=True)
        dist.all_reduce(others, dist.ReduceOp.AVG, async_op=True)
    torch.npu.synchronize()
    for some, others in zip(sums, means):
        same(some, sum(values(rank, torch.bfloat16) for rank in RANKS))
        same(others, sum(values(rank, torch.int32) for rank in RANKS) // SIZE)


def case_many_handles_at_once():
    tensors = [mine() + i for i in range(20)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in reversed(works):
        work.wait()
    for i, tensor in enumerate(tensors):
        same(tensor, sum(values(rank) + i for rank in RANKS))


def case_sub_groups():
    last = dist.new_group([SIZE - 2, SIZE - 1], backend="hccl")
    alone = dist.new_group([0])
    if RANK >= SIZE - 2:
        tensor = mine()
        dist.all_reduce(tensor, group=last)
        same(tensor, values(SIZE - 2) + values(SIZE - 1))
        assert dist.get_rank(last) == RANK - (SIZE - 2) and dist.get_world_size(last) == 2
        dist.destroy_process_group(last)
    if RANK == 0:
        tensor = mine()
        dist.all_reduce(tensor, group=alone)
        out = torch.zeros(1, 2, 3).npu()
        dist.all_to_all_single(out, mine()[None], group=alone)
        same(tensor, values(0))
        same(out[0], values(0))


def case_objects():
    gathered = [None] * SIZE
    dist.all_gather_object(gathered, {"rank": RANK, "text": "x" * RANK})
    assert gathered == [{"rank": rank, "text": "x" * rank} for rank in RANKS]
    shared = [("root", SIZE)] if RANK == 0 else [None]
    dist.broadcast_object_list(shared, src=0)
    assert shared == [("root", SIZE)]
    out = [None]
    dist.scatter_object_list(out, [f"for {rank}" for rank in RANKS] if RANK == 0 else None, src=0)
    assert out == [f"for {RANK}"]
    listed = [None] * SIZE if RANK == 0 else None
    dist.gather_object(RANK, listed, dst=0)
    assert listed == (list(RANKS) if RANK == 0 else None)


def case_coalescing():
    tensors = [mine(), mine() + 1]
    with dist.distributed_c10d._coalescing_manager(device=torch.device("npu"), async_ops=True) as manager:
        for tensor in tensors:
            dist.all_reduce(tensor)
    manager.wait()
    outs = [torch.zeros(2 * SIZE, 3).npu() for _ in range(2)]
    with dist.distributed_c10d._coalescing_manager():
        for out in outs:
            dist.all_gather_into_tensor(out, mine())
    parts = [torch.zeros(2, 3).npu() for _ in range(2)]
    with dist.distributed_c10d._coalescing_manager():
        for part in parts:
            dist.reduce_scatter_tensor(part, torch.cat([values(RANK)] * SIZE).npu())
    for i in range(2):
        same(tensors[i], sum(values(rank) + i for rank in RANKS))
        same(outs[i], torch.cat([values(rank) for rank in RANKS]))
        same(parts[i], sum(values(rank) for rank in RANKS))


def case_of_torch_npu():
    from torch_npu.distributed import all_gather_into_tensor_uneven, all_to_all_vc, reduce_scatter_tensor_uneven

    sizes = [rank + 1 for rank in RANKS]
    out = torch.zeros(sum(sizes), 2).npu()
    all_gather_into_tensor_uneven(out, torch.full((RANK + 1, 2), float(RANK)).npu(), sizes)
    same(out, torch.cat([torch.full((rank + 1, 2), float(rank)) for rank in RANKS]))
    part = torch.zeros(RANK + 1, 2).npu()
    reduce_scatter_tensor_uneven(part, torch.ones(sum(sizes), 2).npu(), sizes)
    same(part, torch.full((RANK + 1, 2), float(SIZE)))
    matrix = [[i + 2 * j for j in RANKS] for i in RANKS]
    received = [matrix[rank][RANK] for rank in RANKS]
    out = torch.zeros(sum(received)).npu()
    all_to_all_vc(out, torch.full((sum(matrix[RANK]),), float(RANK)).npu(), matrix)
    same(out, torch.cat([torch.full((count,), float(rank)) for rank, count in enumerate(received)]))


def case_functional_collectives():
    from torch.distributed import _functional_collectives as functional

    same(functional.all_reduce(mine(), "sum", dist.group.WORLD) + 0, sum(values(rank) for rank in RANKS))
    same(functional.all_gather_tensor(mine(), 0, dist.group.WORLD) + 0, torch.cat([values(rank) for rank in RANKS]))


def case_gradients_through_collectives():
    from torch.distributed.nn.functional import all_reduce

    tensor = mine().requires_grad_()
    (all_reduce(tensor) * (RANK + 1)).sum().backward()
    same(tensor.grad, torch.full((2, 3), float(sum(rank + 1 for rank in RANKS))))


def case_device_mesh():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("npu", (SIZE,))
    full = torch.arange(SIZE * 4.0).view(SIZE * 2, 2)
    sharded = distribute_tensor(full.npu(), mesh, [Shard(0)])
    assert sharded.to_local().shape == (2, 2)
    same(sharded.full_tensor(), full)


def case_tensors_of_the_host():
    refuses(lambda: dist.all_reduce(torch.ones(2)), RuntimeError, "No backend type associated with device type cpu")
    both = dist.new_group(backend="cpu:gloo,npu:hccl")
    tensor = torch.full((2,), RANK + 1.0)
    dist.all_reduce(tensor, group=both)
    on_device = mine()
    dist.all_reduce(on_device, group=both)
    assert tensor.tolist() == [sum(rank + 1 for rank in RANKS)] * 2
    same(on_device, sum(values(rank) for rank in RANKS))


def case_strided_tensors_are_refused():
    refuses(lambda: dist.all_reduce(mine().t()), ValueError, "Tensors must be contiguous")


def case_parts_of_tensors():
    whole = torch.zeros(4, 3).npu()
    whole[1:3].copy_(mine())
    dist.all_reduce(whole[1:3])
    same(whole, torch.cat([torch.zeros(1, 3), sum(values(rank) for rank in RANKS), torch.zeros(1, 3)]))
    torch.npu.config.allow_internal_format = True
    fractal = torch_npu.npu_format_cast(torch.ones(64, 32).npu(), 29)
    torch.npu.config.allow_internal_format = False
    dist.all_reduce(fractal)
    same(fractal, torch.full((64, 32), float(len(RANKS))))
    text = "For a tensor of internal format, it's storage_offset must be 0"
    refuses(lambda: dist.broadcast(fractal[32:], 0), RuntimeError, text)


def case_barrier_and_names():
    dist.barrier()
    assert "hccl" in dist.get_backend_config() and dist.is_hccl_available()
    assert torch.npu.current_device() == RANK
    backend = dist.group.WORLD._get_backend(torch.device("npu"))
    assert isinstance(backend.get_hccl_comm_name(RANK), str)


def case_the_forms_of_torch():
    """Every form that torch's ProcessGroup takes: by position, by name, with options or without."""
    group, long = dist.group.WORLD, timedelta(seconds=100)
    largest = values(SIZE - 1)
    for call in (
        lambda x: group.allreduce([x], op=dist.ReduceOp.MAX),
        lambda x: group.allreduce(x, dist.ReduceOp.MAX),
        lambda x: group.allreduce(tensor=x, op=dist.ReduceOp.MAX, timeout=long),
        lambda x: group.broadcast(x, SIZE - 1),
        lambda x: group.broadcast(tensor=x, root=SIZE - 1, timeout=long),
        lambda x: group.broadcast([x], opts=rooted(dist.BroadcastOptions, SIZE - 1)),
    ):
        tensor = mine()
        call(tensor).wait()
        same(tensor, largest)
    for call in (
        lambda x: group.reduce(x, 0),
        lambda x: group.reduce(tensor=x, root=0, op=dist.ReduceOp.SUM),
        lambda x: group.reduce([x], rooted(dist.ReduceOptions, 0)),
    ):
        tensor = mine()
        call(tensor).wait()
        same(tensor, sum(values(rank) for rank in RANKS) if RANK == 0 else values(RANK))
    for call in (
        lambda parts, x: group.allgather(parts, x),
        lambda parts, x: group.allgather([parts], [x], timeout=long),
        lambda parts, x: group.allgather(output_tensors=parts, input_tensor=x),
        lambda parts, x: group.gather(parts if RANK == 0 else [], x, 0),
        lambda parts, x: group.gather(output_tensors=[parts] if RANK == 0 else [], input_tensors=[x], timeout=long),
    ):
        parts = [torch.zeros(2, 3).npu() for _ in RANKS]
        call(parts, mine()).wait()
        if RANK == 0:
            for rank in RANKS:
                same(parts[rank], values(rank))
    for call in (
        lambda x, parts: group.scatter(x, parts if RANK == 1 else [], 1),
        lambda x, parts: group.scatter(output_tensor=x, input_tensors=parts if RANK == 1 else [], root=1),
        lambda x, parts: group.scatter([x], [parts] if RANK == 1 else [], rooted(dist.ScatterOptions, 1)),
        lambda x, parts: group.reduce_scatter(x, parts, dist.ReduceOp.MAX),
        lambda x, parts: group.reduce_scatter(output=x, input=parts, op=dist.ReduceOp.MAX, timeout=long),
    ):
        tensor = torch.zeros(2, 3).npu()
        call(tensor, [values(rank).npu() for rank in RANKS]).wait()
        same(tensor, values(RANK))
    for call in (group.barrier, lambda: group.barrier(timeout=long), lambda: group.barrier(long)):
        call().wait()
    refuses(lambda: group.allreduce(), TypeError, "tensors must be given once")


def rooted(kind, root):
    options = kind()
    options.rootRank = root
    return options


def case_the_surface_of_hccl():
    from torch_npu._C._distributed_c10d import ProcessGroupHCCL

    asked = ProcessGroupHCCL.Options()
    asked.hccl_config = {"hccl_buffer_size": 300}
    group = dist.new_group(pg_options=asked)
    backend, device = group._get_backend(torch.device("npu")), torch.device("npu", RANK)
    assert isinstance(backend, ProcessGroupHCCL) and isinstance(group, dist.ProcessGroup)
    assert [name for name in dir(ProcessGroupHCCL) if not hasattr(type(backend), name)] == [
        "Options",
        "setUsePgForSymmMemRendezvous",
    ]
    asked.hccl_config = {"hccl_buffer_size": 200}
    assert backend.options.hccl_config == {"hccl_buffer_size": 300}
    before, after = RANKS[RANK - 1], RANKS[(RANK + 1) % SIZE]
    assert backend.get_coll_stream_id(device) == backend.get_p2p_stream_id(device, after, 0) == -1
    backend._group_start()
    sums = [mine(), mine()]
    works = [dist.all_reduce(x, group=group, async_op=True) for x in sums]
    backend._group_end()
    works[0].wait()
    assert all(work.is_completed() for work in works)
    for x in sums:
        same(x, sum(values(rank) for rank in RANKS))
    received = torch.zeros(2, 3).npu()
    works = [dist.isend(mine(), after, group=group), dist.irecv(received, before, group=group)]
    for work in works:
        work.wait()
    same(received, values(before))
    ids = {backend.get_coll_stream_id(device), backend.get_p2p_stream_id(device, after, 0)}
    assert len(ids) == 2 and -1 not in ids
    assert backend._get_stream_id(False) == backend.get_coll_stream_id(device)
    backend._set_hccl_comm_name("mine")
    assert backend.get_hccl_comm_name(RANK) == "mine"
    for name in ("", "x" * 128, "another"):
        refuses(lambda name=name: backend._set_hccl_comm_name(name), RuntimeError, "Invalid hcclCommName")
    backend._add_ephemeral_timeout(timedelta(seconds=5))
    for renew in (lambda: torch_npu.distributed.reinit_process_group(group), lambda: backend.resume_hccl_comm(RANK)):
        renew()
        total = mine()
        dist.all_reduce(total, group=group)
        same(total, sum(values(rank) for rank in RANKS))
    backend.set_watchdog_status(2)
    backend.clear_workmeta_list()
    refuses(lambda: backend.get_hccl_comm(0), NotImplementedError, "no HcclComm")
    refuses(lambda: backend.shrink([0]), RuntimeError, "does not support shrink")
    refuses(lambda: backend.mem_allocator, RuntimeError, "does not support mem_allocator")
    wrong = ProcessGroupHCCL.Options()
    wrong.hccl_config = {"group_name": 123}
    group = dist.new_group(pg_options=wrong)
    refuses(lambda: dist.all_reduce(mine(), group=group), RuntimeError, "Value type of group_name should be string")


def case_captured():
    """Recorded in a graph, between operators, and communicated anew by each replay with what is there then."""
    x, received, batched = mine(), torch.empty(2, 3, device="npu"), torch.empty(2, 3, device="npu")
    gathered, scattered = torch.empty(2 * SIZE, 3, device="npu"), torch.empty(2, 3, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        total = x * 2
        dist.all_reduce(total)
        dist.all_gather_into_tensor(gathered, total + RANK)
        dist.reduce_scatter_tensor(scattered, gathered * 1.0)
        handles = [dist.isend(x, (RANK + 1) % SIZE), dist.irecv(received, (RANK - 1) % SIZE)]
        for handle in handles:
            handle.wait()
        after = received + 1
        pair = [(dist.isend, after, (RANK + 1) % SIZE), (dist.irecv, batched, (RANK - 1) % SIZE)]
        for handle in dist.batch_isend_irecv([dist.P2POp(*one) for one in pair]):
            handle.wait()
        last = batched * 2
    for scale in (1.0, 3.0):
        x.copy_(values(RANK) * scale)
        graph.replay()
        expected = sum(values(rank) for rank in RANKS) * 2 * scale
        same(total, expected)
        same(gathered, torch.cat([expected + rank for rank in RANKS]))
        same(scattered, (expected + RANK) * SIZE)
        same(after, values((RANK - 1) % SIZE) * scale + 1)
        same(last, (values((RANK - 2) % SIZE) * scale + 1) * 2)
    refuses(lambda: _capture(lambda: dist.all_reduce(x.t())), ValueError, "contiguous")


class _Boxed(torch.Tensor):
    """A tensor of a class of its own, which takes itself apart before each operator."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return operator(*tree_map(lambda x: x.inner if isinstance(x, cls) else x, args), **(kwargs or {}))


def _every_collective(tensor, empty):
    """[(the operator of c10d, whole result of the collective)] on tensors that `tensor` and `empty` make."""
    total = tensor()
    dist.all_reduce(total)
    gathered, parts, scattered = empty(2 * SIZE), [empty(2) for _ in RANKS], empty(2)
    dist.all_gather_into_tensor(gathered, tensor())
    dist.all_gather(parts, tensor())
    dist.reduce_scatter_tensor(scattered, gathered)
    first, swapped = tensor(), empty(2 * SIZE)
    dist.broadcast(first, 0)
    dist.all_to_all_single(swapped, gathered)
    given = empty(2)
    dist.scatter(given, [tensor() for _ in RANKS] if RANK == 0 else None, src=0)
    met = empty(2)
    for work in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, tensor(), (RANK + 1) % SIZE), dist.P2POp(dist.irecv, met, (RANK - 1) % SIZE)]
    ):
        work.wait()
    work = dist.all_reduce(tensor(), async_op=True)
    work.wait()
    return total, gathered, parts, scattered, first, swapped, given, met


_BY_EVERY_COLLECTIVE = {
    "allreduce_": 2,
    "_allgather_base_": 1,
    "allgather_": 1,
    "_reduce_scatter_base_": 1,
    "broadcast_": 1,
    "alltoall_base_": 1,
    "scatter_": 1,
}


def case_modes_and_classes_of_tensors_see_each_communication():
    def tensor():
        return torch.full((2,), RANK + 1.0, device="npu")

    def empty(count):
        return torch.zeros(count, device="npu")

    if not hasattr(torch.library, "get_kernel"):  # torch 2.9
        return
    plain = _every_collective(tensor, empty)
    with CommDebugMode() as counted:
        seen = _every_collective(tensor, empty)
    found = {str(operator): count for operator, count in counted.get_comm_counts().items()}
    for operator, count in _BY_EVERY_COLLECTIVE.items():
        assert found[f"c10d.{operator}"] == count, found
    boxed = _every_collective(lambda: _Boxed(tensor()), lambda count: _Boxed(empty(count)))
    for expected, under_mode, in_box in zip(plain, seen, boxed):
        tree_map(lambda a, b, c: same(b, a.cpu()) or same(c.inner, a.cpu()), expected, under_mode, in_box)
    with FakeTensorMode():
        fake = _every_collective(tensor, empty)
    assert [tuple(result.shape) for result in fake if isinstance(result, torch.Tensor)][:2] == [(2,), (2 * SIZE,)]


def _capture(function):
    with torch.npu.graph(torch.npu.NPUGraph()):
        function()


def main():
    assert torch_npu.npu.device_count() == SIZE
    torch.npu.set_device(RANK)
    dist.init_process_group(
        "hccl" if SIZE == 2 else None,  # None: torch_npu's default for the device npu
        init_method=f"file://{sys.argv[1]}",
        rank=RANK,
        world_size=SIZE,
        timeout=timedelta(seconds=30),
    )
    results = {}
    for name, case in [pair for pair in globals().items() if pair[0].startswith("case_")]:
        try:
            case()
            results[name] = "ok"
        except Exception:
            results[name] = traceback.format_exc()
        try:
            dist.barrier()
        except dist.DistBackendError:  # a rank is out of step: the cases from here on stay without a result
            results[name] += "\nthe ranks are out of step"
            break
    Path(sys.argv[2], f"{RANK}.json").write_text(json.dumps(results))
    if len(results) == len([name for name in globals() if name.startswith("case_")]):
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
