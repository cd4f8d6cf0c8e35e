"""The collectives of the simulated `hccl`, by gloo on the memory behind NPU tensors; nothing is copied where gloo takes the dtype."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllreduceCoalescedOptions

from moe_graph.simulator.communication import place
from moe_graph.simulator.communication.call import Call
from moe_graph.simulator.communication.launching import Launcher
from moe_graph.simulator.communication.operands import (
    as_bytes,
    as_list,
    as_rows,
    copied,
    described,
    dtypes_name,
    reducible,
    reduction,
    reductions_name,
    rooted,
    size_of,
    whole_numbers,
)
from moe_graph.simulator.communication.work import SimulatedWork


class Collectives(Launcher):
    """Reductions and movements."""

    # ---- reductions ----

    def allreduce(self, tensors: Any, opts: Any = None) -> SimulatedWork:
        tensors, opts = as_list(tensors), reduction(opts, dist.AllreduceOptions)
        mesh, host = self._host("all_reduce", tensors)
        works, finish = [], []
        for tensor in host:
            values, options, after = reducible(tensor, opts, dist.AllreduceOptions, self._size)
            works.append(lambda values=values, options=options: mesh.gloo.allreduce([values], options))
            finish += after
        told = self._told("all_reduce", "all_reduce", f"{reductions_name(opts.reduceOp)} of {described(host)}")
        return self._launch(mesh, told, tensors, works, finish, opts)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> SimulatedWork:
        return self.allreduce(tensors, copied(reduction(opts, AllreduceCoalescedOptions), dist.AllreduceOptions))

    def reduce(self, tensors: Any, opts: Any = None) -> SimulatedWork:
        tensors, opts = as_list(tensors), reduction(opts, dist.ReduceOptions)
        mesh, (host,) = self._host("reduce", tensors)
        values, options, after = reducible(host, opts, dist.ReduceOptions, self._size)
        if self._rank != opts.rootRank and values is host:
            values = host.clone()  # gloo leaves partial sums in the tensors of the other ranks
        finish = after if self._rank == opts.rootRank else []
        told = self._told(
            "reduce", "reduce", f"{reductions_name(opts.reduceOp)} of {described([host])} to rank {opts.rootRank}"
        )
        return self._launch(mesh, told, tensors, [lambda: mesh.gloo.reduce([values], options)], finish, opts)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> SimulatedWork:
        if input.numel() != output.numel() * self._size:
            raise ValueError(
                f"reduce_scatter_tensor: input must be world size times output size, got {input.numel()} and {output.numel()} "
                f"elements for {self._size} ranks"
            )
        parts = list(input.reshape(-1).split(max(output.numel(), 1)))
        return self._reduce_scatter("reduce_scatter_tensor", output, parts, opts)

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> SimulatedWork:
        output = outputs if isinstance(outputs, Tensor) else outputs[0]
        parts = inputs if isinstance(outputs, Tensor) else inputs[0]
        return self._reduce_scatter("reduce_scatter", output, parts, opts)

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> SimulatedWork:
        return self._together(
            "reduce_scatter_tensor", [self.reduce_scatter_single(*pair, opts) for pair in zip(outputs, inputs)]
        )

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _reduce_scatter(self, operation: str, output: Tensor, parts: Sequence[Tensor], opts: Any) -> SimulatedWork:
        """`parts[r]` goes to rank r; they may differ in size. An all_reduce of them all on one buffer, of which a part is kept."""
        opts = reduction(opts, dist.ReduceScatterOptions)
        mesh, (out, *host) = self._host(operation, [output, *parts])
        sizes = [part.numel() for part in host]
        buffer = torch.cat([part.reshape(-1) for part in host]) if host else out.new_empty(0)
        values, options, after = reducible(buffer, opts, dist.AllreduceOptions, self._size)
        start = sum(sizes[: self._rank])

        def keep() -> None:
            out.view(-1).copy_(buffer[start : start + out.numel()])

        told = self._told(operation, "reduce_scatter", f"{reductions_name(opts.reduceOp)} of {described(host)}")
        calls = [lambda: mesh.gloo.allreduce([values], options)]
        return self._launch(mesh, told, [output], calls, [*after, keep], opts)

    def reduce_scatter_tensor_uneven(
        self, output: Tensor, input: Tensor, input_split_sizes: Iterable[int], opts: Any = None
    ) -> SimulatedWork:
        """torch_npu's own: rows of `input` by `input_split_sizes`, equal ones if that is empty."""
        sizes = whole_numbers(input_split_sizes) or [input.shape[0] // self._size] * self._size
        return self._reduce_scatter("reduce_scatter_tensor_uneven", output, input.split(sizes), opts)

    # ---- movements: bytes, so any dtype ----

    def broadcast(self, tensors: Any, opts: Any = None) -> SimulatedWork:
        tensors, opts = as_list(tensors), dist.BroadcastOptions() if opts is None else opts
        mesh, host = self._host("broadcast", tensors)
        told = self._told("broadcast", "broadcast", f"{described(host)} of rank {opts.rootRank}")
        calls = [lambda each=each: mesh.gloo.broadcast([as_bytes(each)], opts) for each in host]
        return self._launch(mesh, told, tensors, calls, (), opts)

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> SimulatedWork:
        if isinstance(inputs, Tensor):
            outputs, inputs = [outputs], [inputs]
        mesh, (mine, *host) = self._host("all_gather", [inputs[0], *outputs[0]])
        return self._gather_parts("all_gather", mesh, outputs[0], host, mine, opts)

    def _gather_parts(
        self, operation: str, mesh: Any, results: Sequence[Tensor], parts: Sequence[Tensor], mine: Tensor, opts: Any
    ) -> SimulatedWork:
        """Rank r's `mine` becomes parts[r]; HCCL takes parts of different sizes too."""
        if all(each.numel() == mine.numel() for each in parts):
            calls = [lambda: mesh.gloo.allgather([[as_bytes(each) for each in parts]], [as_bytes(mine)])]
        else:
            calls = [
                lambda root=root, each=each: mesh.gloo.broadcast(
                    [as_bytes(each.copy_(mine.view(each.shape)) if root == self._rank else each)], rooted(root)
                )
                for root, each in enumerate(parts)
            ]
        told = self._told(
            operation,
            "all_gather",
            dtypes_name(mine.dtype),
            [size_of(mine)] * self._size,
            [size_of(each) for each in parts],
            f"{mine.numel()} elements into {', '.join(str(each.numel()) for each in parts[:8])}",
        )
        return self._launch(mesh, told, results, calls, (), opts)

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
        return self._gather_into("all_gather_into_tensor", output, input, [input.numel()] * self._size, opts)

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> SimulatedWork:
        return self._together(
            "all_gather_into_tensor", [self.all_gather_single(*pair) for pair in zip(outputs, inputs)]
        )

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def all_gather_into_tensor_uneven(
        self, output: Tensor, input: Tensor, output_split_sizes: Iterable[int], opts: Any = None
    ) -> SimulatedWork:
        """torch_npu's own: rank r's input becomes `output_split_sizes[r]` rows, equal ones if that is empty."""
        rows = whole_numbers(output_split_sizes) or [output.shape[0] // self._size] * self._size
        sizes = [count * output[:1].numel() for count in rows]
        return self._gather_into("all_gather_into_tensor_uneven", output, input, sizes, opts)

    def _gather_into(
        self, operation: str, output: Tensor, input: Tensor, sizes: Sequence[int], opts: Any
    ) -> SimulatedWork:
        mesh, (out, mine) = self._host(operation, [output, input])
        return self._gather_parts(operation, mesh, [output], out.view(-1).split(list(sizes)), mine, opts)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> SimulatedWork:
        opts = dist.GatherOptions() if opts is None else opts
        gathered = outputs[0] if outputs else []
        mesh, (mine, *host) = self._host("gather", [inputs[0], *gathered])
        views = [[as_bytes(each) for each in host]] if outputs else []
        sent, received = [0] * self._size, [size_of(each) for each in host] or [0] * self._size
        sent[opts.rootRank] = size_of(mine)
        told = self._told(
            "gather",
            "gather",
            f"{dtypes_name(mine.dtype)} to rank {opts.rootRank}",
            sent,
            received,
            f"{mine.numel()} elements",
        )
        return self._launch(mesh, told, gathered, [lambda: mesh.gloo.gather(views, [as_bytes(mine)], opts)], (), opts)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> SimulatedWork:
        opts = dist.ScatterOptions() if opts is None else opts
        parts = inputs[0] if inputs else []
        mesh, (mine, *host) = self._host("scatter", [outputs[0], *parts])
        views = [[as_bytes(each) for each in host]] if inputs else []
        sent, received = [size_of(each) for each in host] or [0] * self._size, [0] * self._size
        received[opts.rootRank] = size_of(mine)
        told = self._told(
            "scatter",
            "scatter",
            f"{dtypes_name(mine.dtype)} of rank {opts.rootRank}",
            sent,
            received,
            f"{mine.numel()} elements",
        )
        return self._launch(mesh, told, outputs, [lambda: mesh.gloo.scatter([as_bytes(mine)], views, opts)], (), opts)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Iterable[int],
        input_split_sizes: Iterable[int],
        opts: Any = None,
    ) -> SimulatedWork:
        received, sent = whole_numbers(output_split_sizes), whole_numbers(input_split_sizes)
        mesh, (out, mine) = self._host("all_to_all_single", [output, input])
        opts = dist.AllToAllOptions() if opts is None else opts
        into, given = as_rows(out), as_rows(mine)
        call = functools.partial(mesh.gloo.alltoall_base, into, given, received, sent, opts)
        counts = [
            [rows * each.shape[1] for rows in sizes] if sizes else [each.numel() // self._size] * self._size
            for each, sizes in ((given, sent), (into, received))
        ]
        return self._launch(mesh, self._exchange("all_to_all_single", mine, *counts), [output], [call], (), opts)

    alltoall_base = all_to_all_single

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> SimulatedWork:
        mesh, host = self._host("all_to_all", [*outputs, *inputs])
        into, given = host[: len(outputs)], host[len(outputs) :]
        sent = torch.cat([as_bytes(each) for each in given])
        counts = [size_of(each) for each in into]
        sizes = [size_of(each) for each in given]
        received = torch.empty(sum(counts), dtype=torch.uint8)
        call = functools.partial(mesh.gloo.alltoall_base, received, sent, counts, sizes, dist.AllToAllOptions())

        def distribute() -> None:
            for each, part in zip(into, received.split(counts)):
                as_bytes(each).copy_(part)

        told = self._exchange("all_to_all", given[0], sizes, counts)
        return self._launch(mesh, told, outputs, [call], [distribute], opts)

    def alltoallvc(self, output: Tensor, input: Tensor, matrix: Iterable[int], opts: Any = None) -> SimulatedWork:
        """torch_npu's own: element [i, j] of the flat `matrix` says how many elements rank i sends to rank j."""
        matrix = whole_numbers(matrix)
        sent = matrix[self._rank * self._size : (self._rank + 1) * self._size]
        return self.all_to_all_single(output.view(-1), input.view(-1), matrix[self._rank :: self._size], sent)

    # ---- what the ranks tell each other ----

    def _told(
        self,
        operation: str,
        kind: str,
        equal: str,
        sent: Sequence[int] = (),
        received: Sequence[int] = (),
        size: str = "",
    ) -> Call:
        return Call(operation, kind, equal, place.here(), 0, sent, received, size)

    def _exchange(self, operation: str, given: Tensor, sent: Sequence[int], received: Sequence[int]) -> Call:
        shown = [f"{sum(counts)} bytes as {list(counts)[:8]}" for counts in (sent, received)]
        return self._told(
            operation, "all_to_all", dtypes_name(given.dtype), sent, received, f"sends {shown[0]}, expects {shown[1]}"
        )
