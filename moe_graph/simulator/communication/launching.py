"""How a process group of the simulated `hccl` starts a communication: the ranks meet first, then gloo moves the data.

Before each collective the ranks tell each other what they are about to call (`call.Call`). If that does not belong together no data
moves, and all of them raise an error with every rank's call and line. A rank that waits for longer than the group's timeout, or than
MOE_GRAPH_SIM_HANG_SECONDS, raises one with what all ranks are doing (`black_box`).
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroupGloo, _DistributedBackendOptions

from moe_graph.simulator.communication import black_box, call, place
from moe_graph.simulator.communication.call import Call
from moe_graph.simulator.communication.operands import check_sendable
from moe_graph.simulator.communication.order import SLICE, Order
from moe_graph.simulator.communication.work import SimulatedWork
from moe_graph.simulator.runtime import captured, launches, native
from moe_graph.simulator.runtime.errors import SimulatorError
from moe_graph.simulator.runtime.library import runtime
from moe_graph.simulator.runtime.tensors import cpu_view, is_npu

NAME = "hccl"
LIMIT_VARIABLE = "MOE_GRAPH_SIM_HANG_SECONDS"
_PLACE_IN_GLOO = re.compile(r"^\[[^\]]*\.(?:cc|h):\d+\] ")


def limited(timeout: timedelta) -> timedelta:
    """How long a rank waits for the others: the group's timeout, or what the environment says if that is less.

    Raises SimulatorError unless that is a number of seconds above 0.
    """
    said = os.environ.get(LIMIT_VARIABLE)
    if not said:
        return timeout
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise SimulatorError(f"{LIMIT_VARIABLE} must be a number of seconds above 0, got {said!r}")
    return min(timeout, timedelta(seconds=seconds))


_groups: weakref.WeakSet[Launcher] = weakref.WeakSet()
_callbacks: list[Any] = []


def _finish_with_the_device(group: Launcher) -> None:
    """Let waits for the device wait for the group's communications, too."""
    _groups.add(group)
    if _callbacks:
        return

    def finish() -> None:
        for each in list(_groups):
            each.finish()

    library = runtime()
    _callbacks.append(ctypes.CFUNCTYPE(ctypes.c_int32)(captured.guarded(finish)))
    library.moe_sim_before_device_wait.argtypes = [ctypes.c_void_p]
    library.moe_sim_before_device_wait(ctypes.cast(_callbacks[0], ctypes.c_void_p))
    atexit.register(library.moe_sim_before_device_wait, None)


class Mesh:
    """gloo's connections of a group for tensors of one device, and the order of the collectives over them."""

    def __init__(self, gloo: ProcessGroupGloo, name: str) -> None:
        self.gloo = gloo
        self.order = Order(f"simulated hccl {name}")
        self.senders: dict[tuple[int | None, int], Order] = {}  # by rank and tag
        self.count = 0

    def orders(self) -> list[Order]:
        return [self.order, *self.senders.values()]

    def end(self, how: Callable[[Any], Any]) -> None:
        """Close the connections, by a call of gloo's, and with them what waits."""
        for order in self.orders():
            order.close()
        how(self.gloo)
        for order in self.orders():
            order.join()


class Meeting:
    """Of all ranks of a group, before a collective."""

    def __init__(self, group: Launcher, mesh: Mesh, work: SimulatedWork, timeout: timedelta | None) -> None:
        self._group, self._mesh, self._told = group, mesh, work
        self._options = dist.AllToAllOptions()
        if timeout is not None:
            self._options.timeout = timeout
        self._rows: Tensor | None = None
        self._work: Any = None

    def hold(self, deadline: float) -> bool:
        """As `work.Meeting` says."""
        ranks = self._group.size()
        if self._work is None:
            rows = self._told.call.rows(ranks)
            self._rows = torch.empty_like(rows)
            self._work = self._mesh.gloo.alltoall_base(self._rows, rows, [], [], self._options)
        while True:
            left = deadline - time.monotonic()
            try:
                self._work.wait(timedelta(seconds=min(SLICE, max(left, 0.001))))
                break
            except RuntimeError:
                if self._work.is_completed():
                    self._work.wait()  # it has ended since the slice was over; or it has failed, which this says again
                    break
                if left <= 0 or self._mesh.order.is_closed():
                    return False
        if not call.agree(self._rows):
            raise self._group.disagreement(self._told, self._rows)
        return True


class Launcher(dist.ProcessGroup):
    """A group of ranks: gloo by device, and the launch of one communication."""

    has_values = True
    """Do its tensors hold something, so that a captured stream records what it communicates?"""

    def __init__(self, options: _DistributedBackendOptions, backends: dict[str, Any]) -> None:
        rank, size = options.group_rank, options.group_size
        super().__init__(rank, size)  # the constructor with a store cannot be inherited from in Python
        self._rank, self._size, self._store = rank, size, options.store
        self._id = str(options.group_id)
        self._ranks = list(options.global_ranks_in_group) or list(range(size))
        self._limit = limited(options.timeout)
        self._box = black_box.of(options.store, self._ranks[rank], size)
        self._pending: list[SimulatedWork] = []
        self._coalesced: list[SimulatedWork] | None = None
        self._lock = threading.Lock()
        self._extra_time = timedelta(0)
        self._renewals = 0
        self._is_stale = False
        self._devices = ["npu", "cpu"] if str(backends.get("cpu")) == "gloo" else ["npu"]
        self._connect_all()
        black_box.at_end(self._end_at_exit)
        _finish_with_the_device(self)

    def _connect_all(self) -> None:
        self._gloo = {device: self._connect(device) for device in self._devices}
        self._meshes = {device: Mesh(gloo, f"{self._id} {device}") for device, gloo in self._gloo.items()}

    def _renew(self) -> None:
        """Close the connections; the next communication makes new ones."""
        if not self._is_stale:
            self.abort()
            self._renewals += 1
            self._is_stale = True

    def abort(self) -> None:
        """Close the connections; what waits fails."""
        self._end(lambda gloo: gloo.abort())

    def shutdown(self) -> None:
        self._end(lambda gloo: gloo.shutdown())

    def _end(self, how: Callable[[Any], Any]) -> None:
        self._pending.clear()
        for mesh in self._meshes.values():
            mesh.end(how)

    def _connect(self, device: str) -> ProcessGroupGloo:
        again = f"{self._renewals}/" if self._renewals else ""
        store = dist.PrefixStore(f"simulated_{NAME}_{device}/{again}", self._store)
        told = SimulatedWork(Call("the creation of a group", "", f"ranks {self._ranks}", place.here()), [])
        with self._box.during(told):
            try:
                gloo = ProcessGroupGloo(store, self._rank, self._size, timeout=self._limit)
            except RuntimeError as error:
                raise self._explained(told, error) from error
        gloo._set_sequence_number_for_group()
        return gloo

    def _end_at_exit(self) -> None:
        for mesh in self._meshes.values():
            for order in mesh.orders():
                order.close()
                order.join()

    # ---- launching ----

    def _host(self, operation: str, tensors: Sequence[Tensor]) -> tuple[Mesh, list[Tensor]]:
        """(mesh, CPU tensors on the same memory). Raises if the tensors are not contiguous or not all of one device of the group."""
        kinds = {tensor.device.type for tensor in tensors}
        if len(kinds) > 1:
            raise ValueError(f"{operation}: tensors must be on one device, got {sorted(map(str, kinds))}")
        kind = kinds.pop() if kinds else "npu"
        if self._is_stale:
            self._is_stale = False
            self._connect_all()
        if kind not in self._meshes:
            raise RuntimeError(f"No backend type associated with device type {kind}")
        for tensor in tensors:
            check_sendable(operation, tensor)
        queued = native.may_wait_in_queue() if kind == "npu" else None
        if queued is not None and queued():
            torch.npu.current_stream().synchronize()
        return self._meshes[kind], [
            cpu_view(tensor.detach()) if is_npu(tensor) else tensor.detach() for tensor in tensors
        ]

    def _launch(
        self,
        mesh: Mesh,
        told: Call,
        results: Sequence[Tensor],
        calls: Sequence[Callable[[], Any]],
        finish: Sequence[Callable[[], Any]] = (),
        opts: Any = None,
    ) -> SimulatedWork:
        """Start gloo's `calls` when the ranks have met; `finish` runs once when all are done, before anyone sees them done."""
        work = SimulatedWork(told, results, finish, self._explained)

        def start() -> None:
            timeout = getattr(opts, "timeout", None)
            timeout = min(timeout, self._limit) if timeout is not None and timeout > timedelta(0) else None
            if self._extra_time:
                timeout = (timeout or self._limit) + self._extra_time
                self._extra_time = timedelta(0)
            awaited = not getattr(opts, "asyncOp", True) and self._coalesced is None
            with self._lock:
                mesh.count += 1
                work.call = replace(told, number=mesh.count, group=self._id)
                if self._size > 1:
                    work.start_after(Meeting(self, mesh, work, timeout), calls, mesh.order, awaited)
            if self._size == 1:
                work.start(calls)

        return self._issue(work, start)

    def _issue(self, work: SimulatedWork, start: Callable[[], Any]) -> SimulatedWork:
        """Start the work, and keep it."""
        for observe in launches.communication_observers:
            observe(work.call.operation)
        try:
            start()
        except RuntimeError as error:
            raise self._explained(work, error) from None
        self._box.called(work)
        with self._lock:
            # A program may drop a handle without waiting; on a device the operation goes on all the same, and gives its results.
            ended = [other for other in self._pending if other.has_ended()]
            self._pending = [other for other in self._pending if other not in ended]
            self._pending.append(work)
            self._collect(work)
        for other in ended:
            other.finish()
        return work

    def finish(self) -> None:
        """Wait for what has been launched. Raises the error of a communication that nobody has waited for."""
        with self._lock:
            pending, self._pending = self._pending, []
        for work in pending:
            work.finish()

    def _collect(self, work: SimulatedWork) -> None:
        """Take the work up into the block of calls that is open, if one is."""
        if self._coalesced is not None:
            self._coalesced.append(work)

    def _start_coalescing(self, device: torch.device) -> None:
        with self._lock:
            self._coalesced = []

    def _end_coalescing(self, device: torch.device) -> SimulatedWork | None:
        with self._lock:
            works, self._coalesced = self._coalesced or [], None
        return self._together("coalesced operations", works) if works else None

    def _together(self, operation: str, works: Sequence[SimulatedWork]) -> SimulatedWork:
        results = [tensor for work in works for tensor in work.result()]
        told = Call(operation, operation, "; ".join(str(work.call) for work in works[:3]), place.here())
        work = SimulatedWork(told, results, (), self._explained)
        return self._issue(work, lambda: work.start([lambda each=each: each for each in works]))

    # ---- what has gone wrong ----

    def disagreement(self, work: SimulatedWork, rows: Tensor) -> dist.DistBackendError:
        """The error of ranks that have met and do not call the same."""
        by_text: dict[str, list[int]] = {}
        for rank, text in zip(self._ranks, call.texts(rows)):
            by_text.setdefault(text, []).append(rank)
        lines = [f"  {call.named(ranks)}: {text}" for text, ranks in by_text.items()]
        return self._failed(work, call.mismatch(rows, self._ranks), "\n".join(lines))

    def _failed(self, work: SimulatedWork, why: str, lines: str) -> dist.DistBackendError:
        group = f"{self._id}, ranks {self._ranks}"
        whose = f"{work.call} failed on rank {self._rank} of {self._size}, group {group}"
        error = dist.DistBackendError(f"hccl on the simulated device: {whose}: {why}.\n{lines}")
        error.why = why  # in short: what the other ranks are told
        return error

    def _explained(self, work: SimulatedWork, error: Exception) -> Exception:
        """gloo's error with what the ranks do; any other error is itself."""
        first = str(error).splitlines()[0] if str(error) else ""
        if isinstance(error, TimeoutError):
            return self._failed(work, first, self._box.report(self._ranks, work.call).lines)
        if not (_PLACE_IN_GLOO.match(first) or "imed out" in first or "wait timeout" in first):
            return error
        reason = _PLACE_IN_GLOO.sub("", first).partition(". This is typically")[0]
        is_late = "imed out" in reason or "timeout" in reason
        found = self._box.report(self._ranks, work.call, after_loss=not is_late)
        seconds = f"within {time.time() - work.launched:.0f} s"
        if found.gone:
            why = f"{call.named(found.gone)} {'is' if len(found.gone) == 1 else 'are'} gone"
        elif not is_late:
            why = f"{call.named(found.gave_up)} gave up" if found.gave_up else "a connection is lost"
        elif found.missing:
            why = f"{call.named(found.missing)} {'has' if len(found.missing) == 1 else 'have'} not come {seconds}"
        else:
            why = f"nobody has answered {seconds}" if work.is_message else f"it has not ended {seconds}"
        return self._failed(work, why, f"{found.lines}\n  gloo says: {reason}")
