"""Captured graphs of tasks: what Python keeps for them, and the way between Python's launches and the C runtime.

The runtime records what a captured stream is asked to do (runtime/capture.c and its neighbours). An operator that Python computes is
recorded as a task with a number, the position of its function in the graph's list here; a replay calls the functions in order.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from moe_graph.simulator.runtime import calls, launches
from moe_graph.simulator.runtime.library import runtime

ORDINARY, CAPTURED, UPDATING, WAITING = range(4)  # moe_sim_stream_state

before_first: list[Callable[[], None]] = []
"""Called when the first capture is about to begin."""

_graphs: dict[int, Graph] = {}
_special = ctypes.c_int32(0)  # becomes the runtime's counter
_callbacks: list[Any] = []


class _Task(ctypes.Structure):  # python_task of replay.c
    _fields_ = [("model", ctypes.c_uint32), ("replaces", ctypes.c_uint32), ("number", ctypes.c_uint64)]


class Outside:
    """Memory that a graph uses and did not allocate: a replay must find it where it was. `launch`: the first that uses it."""

    __slots__ = ("reference", "address", "size", "description", "launch")

    def __init__(self, tensor: Tensor, launch: str) -> None:
        storage = tensor.untyped_storage()
        self.reference = StorageWeakRef(storage)
        self.address = storage.data_ptr()
        self.size = storage.nbytes()
        self.description = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        self.launch = launch


class Draws:
    """The generator that launches of a graph draw from. A launch's offset counts from `base`, the generator's at the replay."""

    __slots__ = ("generator", "seed", "base", "increment")

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.seed = self.base = self.increment = 0

    def end_capture(self) -> None:
        """Called while the stream is captured still: the offset is the capture's, from 0 on."""
        self.increment = self._state()[1]

    def begin_replay(self) -> None:
        """torch_npu has moved the generator on by the whole graph already."""
        self.seed, offset = self._state()
        self.base = offset - self.increment

    def _state(self) -> list[int]:
        return self.generator.get_state().view(torch.int64).tolist()


class Graph:
    """The launches of Python of one captured graph, in order, and what they depend on."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.launches: list[Callable[[], Any]] = []
        self.names: list[str] = []
        self.lines: list[str] = []  # of the program that launched them
        self.own: set[int] = set()  # addresses that launches of the capture have got their results at
        self.outside: dict[int, Outside] = {}
        self.draws: dict[int, Draws] = {}
        self.default_dtype = torch.get_default_dtype()  # of results of whole numbers' division, and of what names none
        self.replays = 0
        self._used: dict[
            int, set[int]
        ] = {}  # by the position of a launch of Python: the addresses of others that it uses
        self._users: collections.Counter[int] = collections.Counter()  # by address: how many launches
        self._watched: tuple[list[int], list[int]] | None = (
            None  # references and addresses of `outside`; None: not up to date
        )

    def use(self, tensors: Iterable[Tensor], launch: str, position: int | None = None) -> None:
        """Note the memory that a launch reads or writes. `position`: of one of Python; what was launched there before is forgotten."""
        for address in self._used.pop(position, ()):
            self._users[address] -= 1
            if not self._users[address]:
                self.outside.pop(address, None)
        used = self._used.setdefault(position, set()) if position is not None else set()
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            # A storage that does not own its memory (a weak reference of torch_npu) says nothing of the memory's life.
            if address and address not in used and address not in self.own and storage.resizable():
                used.add(address)
                self._users[address] += 1
                if address not in self.outside:
                    self.outside[address] = Outside(tensor, launch)
        self._watched = None

    def end_capture(self) -> None:
        for draws in self.draws.values():
            draws.end_capture()

    def begin_replay(self) -> None:
        """Raises RuntimeError if memory that the graph uses has been freed since the capture."""
        if self._watched is None:
            self._watched = [outside.reference.cdata for outside in self.outside.values()], list(self.outside)
        references, addresses = self._watched
        if any(map(_expired, references)) or list(map(_address, map(_storage, references))) != addresses:
            self._check_outside()
        for draws in self.draws.values():
            draws.begin_replay()
        self.replays += 1

    def _check_outside(self) -> None:
        """Memory that was freed into the graph's own pool is the graph's still, and that of another graph's pool holds what that
        graph writes until somebody else has it; other memory is lost to the graph."""
        segments = torch.npu.memory_snapshot()
        private = _private(segments)
        pools = private & {_pool(_segment(segments, address)) for address in self.own} or private
        for address, outside in list(self.outside.items()):
            storage = _storage(outside.reference.cdata)
            if storage is not None and storage.data_ptr() == address:
                continue
            segment = _segment(segments, address)
            pool = _pool(segment)
            if pool in pools:
                del self.outside[address]
                continue
            if segment is not None and pool in private and not _is_taken(segment, address):
                continue  # looked at again at each replay
            raise RuntimeError(
                f"replay of graph {self.number}: {outside.launch} uses the {outside.size} bytes at {address:#x} of a tensor "
                f"{outside.description} that was {'freed' if storage is None else 'moved by a resize'} after the capture; keep it "
                "alive, and as it is, as long as the graph is replayed"
            )
        self._watched = None


_expired = torch.UntypedStorage._expired
_storage = torch.UntypedStorage._new_with_weak_ptr
_address = torch.UntypedStorage.data_ptr


def _segment(segments: list[dict[str, Any]], address: int) -> dict[str, Any] | None:
    """The allocator's segment that memory lies in; None: in none, it has been given back to the device."""
    for segment in segments:
        if segment["address"] <= address < segment["address"] + segment["total_size"]:
            return segment
    return None


def _pool(segment: dict[str, Any] | None) -> tuple[int, int] | None:
    return None if segment is None else tuple(segment.get("segment_pool_id", (0, 0)))


def _is_taken(segment: dict[str, Any], address: int) -> bool:
    """Does a tensor lie at this address of the segment?"""
    start = segment["address"]
    for block in segment["blocks"]:
        if address < start + block["size"]:
            return bool(block["state"] == "active_allocated")
        start += block["size"]
    return True


def _private(segments: list[dict[str, Any]]) -> set[tuple[int, int] | None]:
    """The pools of graphs; the only one where torch_npu does not tell pools apart, so that freed memory counts as a graph's own."""
    if not any("segment_pool_id" in segment for segment in segments):
        return {(0, 0)}
    return {tuple(segment["segment_pool_id"]) for segment in segments} - {(0, 0)}


def install(library: ctypes.CDLL) -> None:
    """Connect the runtime with this module. Called once, when the device starts."""
    global _special
    _special = ctypes.c_int32.in_dll(library, "moe_sim_special_streams")
    library.moe_sim_stream_state.argtypes = [ctypes.c_void_p]
    library.moe_sim_record.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(_Task)]
    library.moe_sim_python_failed.argtypes = [ctypes.c_char_p]
    library.moe_sim_task_count.argtypes = [ctypes.c_uint32]
    library.moe_sim_task_count.restype = ctypes.c_uint64
    library.aclGetRecentErrMsg.restype = ctypes.c_char_p
    model, number = ctypes.c_uint32, ctypes.c_uint64
    _callbacks.extend(
        (
            ctypes.CFUNCTYPE(None, model)(_captured),
            ctypes.CFUNCTYPE(ctypes.c_int32, model)(guarded(_begin)),
            ctypes.CFUNCTYPE(ctypes.c_int32, model, number, number)(guarded(_run)),
            ctypes.CFUNCTYPE(None, model)(_destroyed),
            ctypes.CFUNCTYPE(ctypes.c_int32, model, ctypes.c_char_p, ctypes.c_void_p)(guarded(_native)),
            ctypes.CFUNCTYPE(None)(prepare),
        )
    )
    library.moe_sim_set_python.argtypes = [ctypes.c_void_p] * 4
    library.moe_sim_set_python(*(ctypes.cast(callback, ctypes.c_void_p) for callback in _callbacks[:4]))
    library.moe_sim_watch_native.argtypes = [ctypes.c_void_p]
    library.moe_sim_before_capture(ctypes.cast(_callbacks[5], ctypes.c_void_p))
    # Graphs may outlive Python: torch_npu destroys those of module variables when the process ends.
    atexit.register(library.moe_sim_set_python, None, None, None, None)


def prepare() -> None:
    """Make ready for captures, as the first one does."""
    while before_first:
        before_first.pop()()


def is_special() -> bool:
    """Is any stream captured, in an update or waiting for an event? Otherwise every launch runs at once."""
    return _special.value != 0


def counter() -> int:
    """The address of the number of such streams, an int32."""
    return ctypes.addressof(_special)


def state(stream: int) -> int:
    """ORDINARY, CAPTURED, UPDATING or WAITING, of a raw stream."""
    return runtime().moe_sim_stream_state(stream)


def failure(what: str, code: int) -> RuntimeError:
    """An error with the runtime's message."""
    message = (runtime().aclGetRecentErrMsg() or b"").decode(errors="replace")
    return RuntimeError(f"{what}: error code is {code}\n{message}")


def graph_of(stream: int) -> Graph:
    """The graph that a captured stream is recorded into."""
    status, model, number = ctypes.c_int32(), ctypes.c_void_p(), ctypes.c_uint32()
    library = runtime()
    library.aclmdlRICaptureGetInfo(ctypes.c_void_p(stream), ctypes.byref(status), ctypes.byref(model))
    library.aclmdlRIGetId(model, ctypes.byref(number))
    return _graph(number.value)


def task_count(number: int) -> int:
    """How many launches a graph has, of Python and of the runtime."""
    return runtime().moe_sim_task_count(number)


def _graph(number: int) -> Graph:
    graph = _graphs.get(number)
    if graph is None:
        graph = _graphs[number] = Graph(number)
    return graph


def record(stream: int, name: str, launch: Callable[[], Any], tensors: list[Tensor], made: list[Tensor]) -> None:
    """Record a launch of a captured stream, or let it take the place of one in an update.

    `tensors`: what it is given, of the device. `made`: its results that got their memory at the launch, a capture's from the graph's pool.
    Raises RuntimeError if the runtime refuses it.
    """
    task = _Task()
    code = runtime().moe_sim_record(stream, name.encode(), ctypes.byref(task))
    if code != 0:
        raise failure(name, code)
    graph = _graph(task.model)
    if task.replaces:
        graph.launches[task.number] = launch
        graph.names[task.number] = name
        graph.use([*tensors, *made], name, task.number)
    else:
        graph.own.update(tensor.untyped_storage().data_ptr() for tensor in made)
        graph.use(tensors, name, len(graph.launches))
        graph.launches.append(launch)
        graph.names.append(name)
        graph.lines.append(launches.user_line())


@contextlib.contextmanager
def watch(observer: Callable[[Graph, str, str, str, Any], None]) -> Iterator[None]:
    """Have an observer (`launches.replay_observers`) told of every launch of every replay inside."""
    launches.replay_observers.append(observer)
    runtime().moe_sim_watch_native(ctypes.cast(_callbacks[4], ctypes.c_void_p))
    try:
        yield
    finally:
        launches.replay_observers.remove(observer)
        if not launches.replay_observers:
            runtime().moe_sim_watch_native(None)


# ---- what the runtime calls ----


def guarded(function: Callable[..., None]) -> Callable[..., int]:
    """An exception becomes an error code and the runtime's message."""

    def call(*args: Any) -> int:
        try:
            function(*args)
        except BaseException as error:
            text = "".join(traceback.format_exception_only(type(error), error)).strip()
            runtime().moe_sim_python_failed(text.encode())
            return 1
        return 0

    return call


def _captured(model: int) -> None:
    graph = _graph(model)
    graph.end_capture()
    for observe in launches.capture_observers:
        observe("capture", graph)


def _begin(model: int) -> None:
    graph = _graph(model)
    graph.begin_replay()
    for observe in launches.capture_observers:
        observe("replay", graph)


def _run(model: int, first: int, count: int) -> None:
    graph = _graphs[model]
    with torch._C._AutoDispatchBelowAutograd(), torch._C.DisableTorchFunction():
        if torch._C._len_torch_dispatch_stack():
            from torch.utils._python_dispatch import _disable_current_modes

            with _disable_current_modes():
                _launch(graph, first, count)
        else:
            _launch(graph, first, count)


def _launch(graph: Graph, first: int, count: int) -> None:
    now = torch.get_default_dtype()
    if now is graph.default_dtype:
        _launch_each(graph, first, count)
        return
    torch.set_default_dtype(graph.default_dtype)
    try:
        _launch_each(graph, first, count)
    finally:
        torch.set_default_dtype(now)


def _launch_each(graph: Graph, first: int, count: int) -> None:
    position = first
    try:
        for position, launch in enumerate(graph.launches[first : first + count], first):
            results = launch()
            for observe in launches.replay_observers:
                observe(graph, f"launch {position}", graph.names[position], graph.lines[position], results)
    except Exception as error:
        raise _placed(graph, position, error) from error


def _placed(graph: Graph, position: int, error: Exception) -> RuntimeError:
    """The error of a launch in a replay, with the launch and its line."""
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    return RuntimeError(
        f"replay of graph {graph.number}: {graph.names[position]}, launched at {graph.lines[position]}: {text}"
    )


def _native(model: int, name: bytes, launch: int) -> None:
    """A launch that the C runtime has made itself. Copies and the like give nothing that is not an input of others."""
    if name == b"aclnnMoeReRouting":
        results = calls.results(runtime(), launch)
        for observe in launches.replay_observers:
            observe(_graph(model), name.decode(), "npu.npu_moe_re_routing.default", "", results)


def _destroyed(model: int) -> None:
    _graphs.pop(model, None)
