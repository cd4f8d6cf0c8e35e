"""The `hccl` backend of torch.distributed on the simulated device: gloo, on the memory behind NPU tensors.

torch_npu registers a C++ process group under this name, which needs HCCL. In its place stands a process group that hands gloo CPU views
of the same memory; nothing is copied where gloo takes the dtype. Programs find it as they find torch_npu's: by
`init_process_group("hccl")` or as the default backend of the device npu.

What HCCL refuses is refused: tensors that are not contiguous, reductions by BAND, BOR and BXOR, CPU tensors in a group without a CPU
backend.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import (
    AllreduceCoalescedOptions,
    ProcessGroupGloo,
    _DistributedBackendOptions,
)
from torch.distributed import distributed_c10d as c10d

from moe_graph.simulator.communication import recorded
from moe_graph.simulator.communication.operands import (
    as_bytes,
    as_list,
    as_rows,
    copied,
    reducible,
    reduction,
    rooted,
)
from moe_graph.simulator.communication.work import SimulatedWork
from moe_graph.simulator.runtime import launches, native
from moe_graph.simulator.runtime.tensors import cpu_view, is_npu

_NAME = "hccl"

_asked = threading.local()  # the backends by device of the group that this thread is creating
_installed = False


def install() -> None:
    """Put this backend in the place of torch_npu's `hccl`. Idempotent; does nothing in a torch without gloo."""
    global _installed
    if _installed or not dist.is_available() or not dist.is_gloo_available():
        return
    _installed = True
    # torch_npu has registered it; up to torch 2.8 `register_backend` refuses a name that is there.
    plugins = dist.Backend._plugins
    recorded.install(SimulatedHccl)
    plugins[_NAME.upper()] = plugins[_NAME.upper()]._replace(creator_fn=_create, extended_api=True)
    c10d._new_process_group_helper = _remembering_backends(c10d._new_process_group_helper)


def _remembering_backends(helper: Callable[..., Any]) -> Callable[..., Any]:
    """torch's constructor of groups tells a backend nothing of the group's other devices: keep them at hand while it runs."""

    @functools.wraps(helper)
    def remember(*args: Any, **kwargs: Any) -> Any:
        backend = kwargs["backend"] if "backend" in kwargs else args[3]
        _asked.backends = dict(c10d.BackendConfig(dist.Backend(str(backend))).get_device_backend_map())
        try:
            group, store = helper(*args, **kwargs)
        finally:
            del _asked.backends
        if isinstance(group, SimulatedHccl) and kwargs.get("device_id") is not None:
            group.bound_device_id = kwargs["device_id"]
        return group, store

    return remember


def _create(options: _DistributedBackendOptions, backend_options: object) -> SimulatedHccl:
    """What torch calls for a new group. Options of ProcessGroupHCCL configure streams and buffers, of which there are none here.

    Raises NotImplementedError before torch 2.6, where a process group cannot be written in Python with the backends this one has.
    """
    if not hasattr(dist.ProcessGroup, "_set_default_backend"):
        raise NotImplementedError(
            f"hccl on the simulated device needs torch 2.6 or newer, this is torch {torch.__version__}"
        )
    return SimulatedHccl(options, getattr(_asked, "backends", {"npu": _NAME}))


class SimulatedHccl(dist.ProcessGroup):
    """A process group over gloo for NPU tensors, and for CPU tensors if the program asked for "cpu:gloo,npu:hccl".

    Methods have the names and arguments of torch.distributed.ProcessGroup. They return at once; errors of the communication, a lost
    rank for instance, are raised by the wait of the returned work as torch.distributed.DistBackendError.
    """

    supports_splitting = False
    supports_coalescing = True

    def __init__(self, options: _DistributedBackendOptions, backends: dict[str, Any]) -> None:
        rank, size = options.group_rank, options.group_size
        super().__init__(rank, size)  # the constructor with a store cannot be inherited from in Python
        self._rank, self._size, self._store = rank, size, options.store
        self._id = str(options.group_id)
        self._gloo = {"npu": self._connect(options, "npu")}
        if str(backends.get("cpu")) == "gloo":
            self._gloo["cpu"] = self._connect(options, "cpu")
        # torch's C++ asks a group for the backends of its devices, to name it and to count; it communicates by the methods below.
        for device, kind in (
            ("npu", dist.ProcessGroup.BackendType.CUSTOM),
            ("cpu", dist.ProcessGroup.BackendType.GLOO),
        ):
            if device in self._gloo:
                self._register_backend(torch.device(device), kind, self._gloo[device])
        self._set_default_backend(dist.ProcessGroup.BackendType.CUSTOM)
        self._pending: list[SimulatedWork] = []
        self._coalesced: list[SimulatedWork] | None = None
        self._lock = threading.Lock()

    def _connect(self, options: _DistributedBackendOptions, device: str) -> ProcessGroupGloo:
        store = dist.PrefixStore(f"simulated_{_NAME}_{device}/", options.store)
        gloo = ProcessGroupGloo(store, options.group_rank, options.group_size, timeout=options.timeout)
        gloo._set_sequence_number_for_group()
        return gloo

    # ---- what torch and torch_npu ask a group or its backend ----

    def _get_backend(self, device: torch.device) -> Any:
        device = torch.device(device)
        if device.type == "npu":
            return self
        if device.type not in self._gloo:
            raise RuntimeError(f"No backend type associated with device type {device.type}")
        return self._gloo[device.type]

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device(device) for device in self._gloo]

    def get_group_store(self) -> dist.Store:
        return self._store

    def getBackendName(self) -> str:
        return _NAME

    def name(self) -> str:
        return _NAME

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def get_hccl_comm_name(self, rank: int, init_comm: bool = True) -> str:
        """The communicator's name, as operators that communicate take it. None of them is simulated."""
        return f"simulated_{self._id}_{rank}"

    def _set_sequence_number_for_group(self) -> None:
        for gloo in self._gloo.values():
            gloo._set_sequence_number_for_group()

    def _get_sequence_number_for_group(self) -> int:
        return self._gloo["npu"]._get_sequence_number_for_group()

    def set_timeout(self, timeout: timedelta) -> None:
        for gloo in self._gloo.values():
            gloo.set_timeout(timeout)

    _set_default_timeout = set_timeout

    def eager_connect_single_device(self, device: torch.device | None) -> None:
        """Nothing to do: gloo has connected all ranks when the group was made."""

    def shutdown(self) -> None:
        self._pending.clear()
        for gloo in self._gloo.values():
            gloo.shutdown()

    def abort(self) -> None:
        self._pending.clear()
        for gloo in self._gloo.values():
            gloo.abort()

    # ---- launching ----

    def _host(self, operation: str, tensors: Sequence[Tensor]) -> tuple[ProcessGroupGloo, list[Tensor]]:
        """(gloo, CPU tensors on the same memory). Raises if the tensors are not contiguous or not all of one device of the group."""
        kinds = {tensor.device.type for tensor in tensors}
        if len(kinds) > 1:
            raise ValueError(f"{operation}: tensors must be on one device, got {sorted(map(str, kinds))}")
        kind = kinds.pop() if kinds else "npu"
        if kind not in self._gloo:
            raise RuntimeError(f"No backend type associated with device type {kind}")
        for tensor in tensors:
            if not tensor.is_contiguous():
                raise ValueError(
                    f"Tensors must be contiguous: {operation} got strides {tensor.stride()} of {tuple(tensor.shape)}"
                )
        queued = native.may_wait_in_queue() if kind == "npu" else None
        if queued is not None and queued():
            torch.npu.synchronize()
        return self._gloo[kind], [
            cpu_view(tensor.detach()) if is_npu(tensor) else tensor.detach() for tensor in tensors
        ]

    def _launch(
        self,
        operation: str,
        results: Sequence[Tensor],
        calls: Sequence[Callable[[], Any]],
        finish: Sequence[Callable[[], Any]] = (),
    ) -> SimulatedWork:
        """Start gloo's `calls`; `finish` runs once when all are done, before anyone sees them done."""
        for observe in launches.communication_observers:
            observe(operation)
        work = SimulatedWork(f"{operation} on rank {self._rank} of {self._size}, group {self._id}", results, finish)
        work.start(calls)
        with self._lock:
            # A program may drop a handle without waiting; on a device the operation goes on all the same.
            self._pending = [other for other in self._pending if not other.has_ended()]
            self._pending.append(work)
            if self._coalesced is not None:
                self._coalesced.append(work)
        return work

    def _start_coalescing(self, device: torch.device) -> None:
        with self._lock:
            self._coalesced = []

    def _end_coalescing(self, device: torch.device) -> SimulatedWork | None:
        with self._lock:
            works, self._coalesced = self._coalesced or [], None
        return self._together("coalesced operations", works) if works else None

    def _together(self, operation: str, works: Sequence[SimulatedWork]) -> SimulatedWork:
        results = [tensor for work in works for tensor in work.result()]
        return self._launch(operation, results, [lambda work=work: work for work in works])

    # ---- reductions ----

    def allreduce(self, tensors: Any, opts: Any = None) -> SimulatedWork:
        tensors, opts = as_list(tensors), reduction(opts, dist.AllreduceOptions)
        gloo, host = self._host("all_reduce", tensors)
        works, finish = [], []
        for tensor in host:
            values, options, after = reducible(tensor, opts, dist.AllreduceOptions)
            works.append(lambda values=values, options=options: gloo.allreduce([values], options))
            finish += after
        return self._launch("all_reduce", tensors, works, finish)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> SimulatedWork:
        return self.allreduce(tensors, copied(reduction(opts, AllreduceCoalescedOptions), dist.AllreduceOptions))

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> SimulatedWork:
        opts = reduction(opts, dist.ReduceOptions)
        gloo, (host,) = self._host("reduce", tensors)
        values, options, after = reducible(host, opts, dist.ReduceOptions)
        if self._rank != opts.rootRank and values is host:
            values = host.clone()  # gloo leaves partial sums in the tensors of the other ranks
        finish = after if self._rank == opts.rootRank else []
        return self._launch("reduce", tensors, [lambda: gloo.reduce([values], options)], finish)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> SimulatedWork:
        if input.numel() != output.numel() * self._size:
            raise ValueError(
                f"reduce_scatter_tensor: input must be world size times output size, got {input.numel()} and {output.numel()} "
                f"elements for {self._size} ranks"
            )
        return self._reduce_scatter(output, list(input.reshape(-1).split(max(output.numel(), 1))), opts)

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> SimulatedWork:
        output = outputs if isinstance(outputs, Tensor) else outputs[0]
        return self._reduce_scatter(output, inputs if isinstance(outputs, Tensor) else inputs[0], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> SimulatedWork:
        return self._together(
            "reduce_scatter_tensor", [self.reduce_scatter_single(*pair, opts) for pair in zip(outputs, inputs)]
        )

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _reduce_scatter(self, output: Tensor, parts: Sequence[Tensor], opts: Any) -> SimulatedWork:
        """`parts[r]` goes to rank r; they may differ in size. An all_reduce of them all on one buffer, of which a part is kept."""
        opts = reduction(opts, dist.ReduceScatterOptions)
        gloo, (out, *host) = self._host("reduce_scatter", [output, *parts])
        sizes = [part.numel() for part in host]
        buffer = torch.cat([part.reshape(-1) for part in host]) if host else out.new_empty(0)
        values, options, after = reducible(buffer, opts, dist.AllreduceOptions)
        start = sum(sizes[: self._rank])

        def keep() -> None:
            out.view(-1).copy_(buffer[start : start + out.numel()])

        return self._launch("reduce_scatter", [output], [lambda: gloo.allreduce([values], options)], [*after, keep])

    def reduce_scatter_tensor_uneven(
        self, output: Tensor, input: Tensor, input_split_sizes: list[int], opts: Any = None
    ) -> SimulatedWork:
        """torch_npu's own: rows of `input` by `input_split_sizes`, equal ones if that is empty."""
        sizes = input_split_sizes or [input.shape[0] // self._size] * self._size
        return self._reduce_scatter(output, input.split(sizes), opts)

    # ---- movements: bytes, so any dtype ----

    def broadcast(self, tensors: Any, opts: Any = None) -> SimulatedWork:
        tensors, opts = as_list(tensors), dist.BroadcastOptions() if opts is None else opts
        gloo, host = self._host("broadcast", tensors)
        return self._launch(
            "broadcast", tensors, [lambda each=each: gloo.broadcast([as_bytes(each)], opts) for each in host]
        )

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> SimulatedWork:
        if isinstance(inputs, Tensor):
            outputs, inputs = [outputs], [inputs]
        gloo, (mine, *host) = self._host("all_gather", [inputs[0], *outputs[0]])
        if all(each.numel() == mine.numel() for each in host):
            calls = [lambda: gloo.allgather([[as_bytes(each) for each in host]], [as_bytes(mine)])]
        else:  # HCCL takes parts of different sizes too
            host[self._rank].copy_(mine)
            calls = [
                lambda root=root, each=each: gloo.broadcast([as_bytes(each)], rooted(root))
                for root, each in enumerate(host)
            ]
        return self._launch("all_gather", outputs[0], calls)

    def allgather_coalesced(
        self, output_lists: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> SimulatedWork:
        by_rank = [self.allgather([list(parts)], [one]) for parts, one in zip(zip(*output_lists), inputs)]
        return self._together("all_gather", by_rank)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> SimulatedWork:
        if output.numel() != input.numel() * self._size:
            raise ValueError(
                f"all_gather_into_tensor: output must be world size times input size, got {output.numel()} and {input.numel()} "
                f"elements for {self._size} ranks"
            )
        return self._gather_into(output, input, [input.numel()] * self._size)

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> SimulatedWork:
        return self._together(
            "all_gather_into_tensor", [self.all_gather_single(*pair) for pair in zip(outputs, inputs)]
        )

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def all_gather_into_tensor_uneven(
        self, output: Tensor, input: Tensor, output_split_sizes: list[int], opts: Any = None
    ) -> SimulatedWork:
        """torch_npu's own: rank r's input becomes `output_split_sizes[r]` rows, equal ones if that is empty."""
        rows = output_split_sizes or [output.shape[0] // self._size] * self._size
        return self._gather_into(output, input, [count * output[:1].numel() for count in rows])

    def _gather_into(self, output: Tensor, input: Tensor, sizes: Sequence[int]) -> SimulatedWork:
        gloo, (out, mine) = self._host("all_gather_into_tensor", [output, input])
        parts = out.view(-1).split(list(sizes))
        if len(set(sizes)) == 1:
            calls = [lambda: gloo.allgather([[as_bytes(each) for each in parts]], [as_bytes(mine)])]
        else:
            parts[self._rank].copy_(mine.view(-1))
            calls = [
                lambda root=root, each=each: gloo.broadcast([as_bytes(each)], rooted(root))
                for root, each in enumerate(parts)
            ]
        return self._launch("all_gather_into_tensor", [output], calls)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> SimulatedWork:
        opts = dist.GatherOptions() if opts is None else opts
        gathered = outputs[0] if outputs else []
        gloo, (mine, *host) = self._host("gather", [inputs[0], *gathered])
        views = [[as_bytes(each) for each in host]] if outputs else []
        return self._launch("gather", gathered, [lambda: gloo.gather(views, [as_bytes(mine)], opts)])

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> SimulatedWork:
        opts = dist.ScatterOptions() if opts is None else opts
        parts = inputs[0] if inputs else []
        gloo, (mine, *host) = self._host("scatter", [outputs[0], *parts])
        views = [[as_bytes(each) for each in host]] if inputs else []
        return self._launch("scatter", outputs, [lambda: gloo.scatter([as_bytes(mine)], views, opts)])

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: list[int],
        input_split_sizes: list[int],
        opts: Any = None,
    ) -> SimulatedWork:
        gloo, (out, mine) = self._host("all_to_all_single", [output, input])
        opts = dist.AllToAllOptions() if opts is None else opts
        call = functools.partial(
            gloo.alltoall_base, as_rows(out), as_rows(mine), list(output_split_sizes), list(input_split_sizes), opts
        )
        return self._launch("all_to_all_single", [output], [call])

    alltoall_base = all_to_all_single

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> SimulatedWork:
        gloo, host = self._host("all_to_all", [*outputs, *inputs])
        into, given = host[: len(outputs)], host[len(outputs) :]
        sent = torch.cat([as_bytes(each) for each in given])
        counts = [as_bytes(each).numel() for each in into]
        received = torch.empty(sum(counts), dtype=torch.uint8)
        call = functools.partial(
            gloo.alltoall_base,
            received,
            sent,
            counts,
            [as_bytes(each).numel() for each in given],
            dist.AllToAllOptions(),
        )

        def distribute() -> None:
            for each, part in zip(into, received.split(counts)):
                as_bytes(each).copy_(part)

        return self._launch("all_to_all", outputs, [call], [distribute])

    def alltoallvc(self, output: Tensor, input: Tensor, matrix: list[int], opts: Any = None) -> SimulatedWork:
        """torch_npu's own: element [i, j] of the flat `matrix` says how many elements rank i sends to rank j."""
        sent = matrix[self._rank * self._size : (self._rank + 1) * self._size]
        return self.all_to_all_single(output.view(-1), input.view(-1), matrix[self._rank :: self._size], sent)

    # ---- point to point, and meeting ----

    def send(self, tensors: list[Tensor], destination: int, tag: int = 0) -> SimulatedWork:
        gloo, (host,) = self._host("send", tensors)
        return self._launch(f"send to {destination}", tensors, [lambda: gloo.send([as_bytes(host)], destination, tag)])

    def recv(self, tensors: list[Tensor], source: int, tag: int = 0) -> SimulatedWork:
        gloo, (host,) = self._host("recv", tensors)
        return self._launch(f"recv from {source}", tensors, [lambda: gloo.recv([as_bytes(host)], source, tag)])

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> SimulatedWork:
        gloo, (host,) = self._host("recv", tensors)
        return self._launch("recv from any rank", tensors, [lambda: gloo.recv_anysource([as_bytes(host)], tag)])

    def batch_isend_irecv(self, kinds: list[str], tensors: list[Tensor], ranks: list[int]) -> SimulatedWork:
        """torch_npu's own: `kinds` are "isend" or "irecv", one work for them all."""
        works = []
        for kind, tensor, rank in zip(kinds, tensors, ranks):
            if kind not in ("isend", "irecv"):
                raise ValueError(f'batch_isend_irecv: an operation must be "isend" or "irecv", got {kind!r}')
            works.append((self.send if kind == "isend" else self.recv)([tensor], rank))
        return self._together("batch_isend_irecv", works)

    def barrier(self, opts: Any = None) -> SimulatedWork:
        opts = dist.BarrierOptions() if opts is None else opts
        gloo, _ = self._host("barrier", [])
        return self._launch("barrier", [], [lambda: gloo.barrier(opts)])

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        self._gloo["npu"].monitored_barrier(timeout, wait_all_ranks)
