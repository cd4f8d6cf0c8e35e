"""Sends and receives of the simulated `hccl`, and barriers.

A message is preceded by its description (`call.Call`), under a tag of its own: a receiver that expects another size or dtype says so, and
takes no data. A message to oneself stays in the process.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe_graph.simulator.communication import call, place
from moe_graph.simulator.communication.call import Call
from moe_graph.simulator.communication.launching import Launcher, Mesh
from moe_graph.simulator.communication.operands import as_bytes, as_list, described
from moe_graph.simulator.communication.order import Order
from moe_graph.simulator.communication.work import SimulatedWork

_LARGEST_TAG = (1 << 30) - 1  # gloo's are below 2^31, and a message has two of them


class _Arrival:
    """The wait for a message's description."""

    def __init__(self, group: Messages, mesh: Mesh, work: SimulatedWork, source: int | None, tag: int) -> None:
        self._group, self._told = group, work
        self._rows = torch.empty(1, call.length(1), dtype=torch.uint8)
        if source is None:
            self._work = mesh.gloo.recv_anysource([self._rows], 2 * tag + 1)
        else:
            self._work = mesh.gloo.recv([self._rows], source, 2 * tag + 1)
        self.source = source

    def hold(self, deadline: float) -> bool:
        """As `work.Meeting` says. gloo closes the connection at the deadline: its wait for a message has no slices."""
        left = deadline - time.monotonic()
        self._work.wait() if left == float("inf") else self._work.wait(timedelta(seconds=max(left, 0.001)))
        if self.source is None:
            self.source = self._work._source_rank()
        self._group.compare(self._told, self.source, self._rows)
        return True


class _OwnArrival:
    """The wait for a message of this rank to itself."""

    def __init__(self, group: Messages, work: SimulatedWork, tag: int, into: Tensor) -> None:
        self._group, self._told, self._tag, self._into = group, work, tag, into

    def hold(self, deadline: float) -> bool:
        """As `work.Meeting` says."""
        limit = time.monotonic() + self._group.limit.total_seconds()
        with self._group.own_sent:
            box = self._group.own[self._tag]
            came = self._group.own_sent.wait_for(lambda: len(box) > 0, max(min(deadline, limit) - time.monotonic(), 0))
            if not came:
                if deadline < limit:
                    return False
                raise TimeoutError("no message of this rank to itself has come: Timed out")
            told, data = box.popleft()
        self._group.compare(self._told, self._group.rank(), told.rows(1))
        self._into.copy_(data)
        return True


class Messages(Launcher):
    """Point to point, and meeting."""

    def __init__(self, options: Any, backends: dict[str, Any], *others: Any) -> None:
        super().__init__(options, backends, *others)
        self.own: defaultdict[int, deque[tuple[Call, Tensor]]] = defaultdict(deque)
        self.own_sent = threading.Condition()
        self._message_count = 0
        self._talked_to: set[int] = set()

    @property
    def limit(self) -> timedelta:
        """How long a rank waits for the others."""
        return self._limit

    def send(self, tensors: Any, dstRank: int, tag: int = 0) -> SimulatedWork:
        tensors = as_list(tensors)
        mesh, (host,) = self._host("send", tensors)
        work = self._message(f"send to {dstRank}", tensors, tag)
        self._talked_to.add(dstRank)
        if dstRank == self._rank:

            def start() -> None:
                with self.own_sent:
                    self.own[tag].append((work.call, as_bytes(host).clone()))
                    self.own_sent.notify_all()
                work.start([])
        else:

            def start() -> None:
                rows = work.call.rows(1)
                work.start(
                    [
                        lambda: mesh.gloo.send([rows], dstRank, 2 * tag + 1),
                        lambda: mesh.gloo.send([as_bytes(host)], dstRank, 2 * tag),
                    ]
                )

        return self._issue(work, start)

    def recv(self, tensors: Any, srcRank: int, tag: int = 0) -> SimulatedWork:
        return self._receive(f"recv from {srcRank}", as_list(tensors), srcRank, tag)

    def recv_anysource(self, tensors: Any, tag: int = 0) -> SimulatedWork:
        return self._receive("recv from any rank", as_list(tensors), None, tag)

    def _receive(self, operation: str, tensors: list[Tensor], source: int | None, tag: int) -> SimulatedWork:
        mesh, (host,) = self._host("recv", tensors)
        work = self._message(operation, tensors, tag)

        def start() -> None:
            if (source, tag) not in mesh.senders:
                mesh.senders[source, tag] = Order(f"simulated hccl {self._id}, messages from {source}")
            order = mesh.senders[source, tag]
            if source == self._rank:
                work.start_after(_OwnArrival(self, work, tag, as_bytes(host)), [], order, False)
                return
            arrival = _Arrival(self, mesh, work, source, tag)

            def take() -> Any:
                work.came_from = arrival.source
                self._talked_to.add(arrival.source)
                return mesh.gloo.recv([as_bytes(host)], arrival.source, 2 * tag)

            work.start_after(arrival, [take], order, False)

        return self._issue(work, start)

    def _message(self, operation: str, tensors: list[Tensor], tag: int) -> SimulatedWork:
        if not 0 <= tag <= _LARGEST_TAG:
            raise ValueError(f"tag must be from 0 to {_LARGEST_TAG}, got {tag}")
        with self._lock:
            self._message_count += 1
            number = self._message_count
        told = Call(
            operation,
            "message",
            described(tensors),
            place.here(),
            number,
            size=f"tag {tag}" if tag else "",
            group=self._id,
        )
        work = SimulatedWork(told, tensors, (), self._explained)
        work.is_message = True
        return work

    def compare(self, work: SimulatedWork, source: int, rows: Tensor) -> None:
        """Raises DistBackendError if a receiver expects another message than it is sent, of which `rows` [1, bytes] tell."""
        if call.agree(torch.cat([rows, work.call.rows(1)])):
            return
        (sent,) = call.texts(rows)
        sender = self._ranks[source]
        self._box.note(f"refused a message of rank {sender}, which is in {sent}")
        lines = f"  rank {sender}: {sent}\n  rank {self._ranks[self._rank]}: {work.call}"
        raise self._failed(work, f"rank {sender} sends another size or dtype", lines)

    def batch_isend_irecv(self, op_type: list[str], tensors: list[Tensor], remote_rank_list: list[int]) -> Any:
        """torch_npu's own: kinds are "isend" or "irecv", one work for them all."""
        works = []
        for kind, tensor, rank in zip(op_type, tensors, remote_rank_list):
            if kind not in ("isend", "irecv"):
                raise ValueError(f'batch_isend_irecv: an operation must be "isend" or "irecv", got {kind!r}')
            works.append((self.send if kind == "isend" else self.recv)([tensor], rank))
        return self._together("batch_isend_irecv", works)

    def barrier(self, opts: Any = None, timeout: timedelta | None = None) -> SimulatedWork:
        opts = dist.BarrierOptions() if opts is None else opts
        if timeout is not None:
            opts.timeout = timeout
        mesh, _ = self._host("barrier", [])
        # The meeting before a collective is a barrier already.
        return self._launch(mesh, Call("barrier", "barrier", "", place.here()), [], [], (), opts)

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """A barrier; its error names every rank that has not come, whatever `wait_all_ranks` says."""
        self.barrier(timeout=timeout).wait()
