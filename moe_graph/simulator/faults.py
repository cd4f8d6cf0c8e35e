"""Fault injection, so that a program's handling of errors can be tested: a context manager each, or the environment.

    memory_limit        torch_npu's own out-of-memory error       MOE_GRAPH_SIM_MEMORY_GB=0.5
    failing_kernel      the launch of an operator fails           MOE_GRAPH_SIM_FAULT_KERNEL=aten::mm
    asynchronous_error  an operator's error surfaces later,       MOE_GRAPH_SIM_FAULT_ASYNC=aten::mm
                        where the host waits for the device
    slow_stream         a stream is busy after each launch        MOE_GRAPH_SIM_FAULT_SLOW=0.01 (seconds)

In the environment an operator may be followed by @N: from its N-th launch on. With MOE_GRAPH_SIM_FAULT_RANK=R the faults of the
environment are on in the process with RANK=R alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch

from moe_graph.foundation import compat
from moe_graph.simulator.runtime import captured, launches, native
from moe_graph.simulator.runtime.errors import SimulatorError
from moe_graph.simulator.runtime.library import runtime

_MEMORY = "MOE_GRAPH_SIM_MEMORY_GB"
_AICORE_EXCEPTION = 507015  # what a wait reports after a kernel has crashed
_LAUNCH_FAILED = 361001  # aclnn: an error of the runtime
# Operators that the C runtime computes: torch_npu's own kernels launch them, so the path that calls observers does not see them.
_NATIVE = {"npu::npu_moe_re_routing": ("npu", "npu_moe_re_routing")}


@contextlib.contextmanager
def memory_limit(gib: float) -> Iterator[None]:
    """The device has this much memory, what is allocated already included; an allocation beyond it is torch.OutOfMemoryError.

    Raises ValueError unless `gib` is above 0.
    """
    if not gib > 0:
        raise ValueError(f"memory_limit: gib must be above 0, got {gib}")
    runtime()
    torch.npu.empty_cache()  # blocks kept from before would serve allocations past the limit
    before = os.environ.get(_MEMORY)
    os.environ[_MEMORY] = repr(float(gib))
    try:
        yield
    finally:
        if before is None:
            del os.environ[_MEMORY]
        else:
            os.environ[_MEMORY] = before


@contextlib.contextmanager
def failing_kernel(operator: str, from_call: int = 1) -> Iterator[None]:
    """Launches of this operator raise RuntimeError, as torch_npu does when a launch fails; nothing is computed.

    `operator`: "aten::mm" for all overloads, "aten::mm.out" for one; views and empty tensors are no launches, and do not fail.
    The first `from_call` - 1 launches succeed. Raises ValueError if there is no such operator, or `from_call` is below 1.
    """

    def fail(name: str) -> None:
        raise RuntimeError(
            f"NPU function error: call {name} failed, error code is {_LAUNCH_FAILED}\n"
            "[ERROR] ERR00100 PTA call acl api failed\n"
            f"simulated device: {name} fails on purpose (moe_graph.simulator.faults)"
        )

    with _at_launch(operator, from_call, fail):
        yield


@contextlib.contextmanager
def asynchronous_error(operator: str | None = None, from_call: int = 1) -> Iterator[None]:
    """This operator (None: something before) crashes on the device: the launch returns, and waits for the device fail from then on.

    RuntimeError with CANN's code 507015 comes from synchronize of device, stream and event, and from operators for which the host
    waits: copies to the host, `item`, `nonzero`. As on a device it stays until the context ends. Other devices are not affected.
    Raises ValueError if there is no such operator, or `from_call` is below 1.
    """
    library = _typed(runtime())
    broken: set[int] = set()

    def crash(name: str) -> None:
        device = torch.npu.current_device()
        broken.add(device)
        library.moe_sim_set_pending_error(
            device, _AICORE_EXCEPTION, f"{name} has crashed on purpose (moe_graph.simulator.faults)".encode()
        )

    def surface(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
        if broken and torch.npu.current_device() in broken:
            traffic = launches.host_traffic(overload, args, kwargs)
            if traffic is not None and traffic.waits:
                torch.npu.synchronize()

    with contextlib.ExitStack() as stack:
        if operator is None:
            crash("a kernel")
        else:
            stack.enter_context(_at_launch(operator, from_call, crash))
        stack.enter_context(_observer(surface))
        try:
            yield
        finally:
            for device in broken:
                library.moe_sim_set_pending_error(device, 0, b"")


@contextlib.contextmanager
def slow_stream(seconds: float, stream: Any = None) -> Iterator[None]:
    """Each launch keeps its stream busy for `seconds`: queries of stream and events say so, waits take that long, events measure it.

    `stream`: slow is this torch.npu.Stream alone; None: all. Values are computed at the launch all the same. Raises ValueError if
    `seconds` is negative.
    """
    if not seconds >= 0:
        raise ValueError(f"slow_stream: seconds must be 0 or more, got {seconds}")
    library = _typed(runtime())

    def delay(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
        current = torch.npu.current_stream()
        if stream is None or current == stream:
            library.moe_sim_delay_stream(current.npu_stream, int(seconds * 1e9))
        traffic = launches.host_traffic(overload, args, kwargs)
        if traffic is not None and traffic.waits:
            current.synchronize()

    with _observer(delay):
        yield


def from_environment() -> None:
    """Switch on what the environment asks for, until the process ends. Raises SimulatorError if it asks for what there is not."""
    rank = os.environ.get("MOE_GRAPH_SIM_FAULT_RANK")
    if rank is not None and rank != os.environ.get("RANK", "0"):
        return
    for name in sorted(os.environ):
        if name.startswith("MOE_GRAPH_SIM_FAULT_") and name not in (*_BY_ENVIRONMENT, "MOE_GRAPH_SIM_FAULT_RANK"):
            raise SimulatorError(f"{name} is no fault; there are {', '.join(_BY_ENVIRONMENT)}")
    for name, manager in _BY_ENVIRONMENT.items():
        value = os.environ.get(name)
        if not value:
            continue
        try:
            if manager is slow_stream:
                opened = slow_stream(float(value))
            else:
                operator, _, first = value.partition("@")
                opened = manager(operator, int(first or 1))
            _for_good.enter_context(opened)
        except ValueError as error:
            raise SimulatorError(f"{name}={value}: {error}") from error


_BY_ENVIRONMENT = {
    "MOE_GRAPH_SIM_FAULT_KERNEL": failing_kernel,
    "MOE_GRAPH_SIM_FAULT_ASYNC": asynchronous_error,
    "MOE_GRAPH_SIM_FAULT_SLOW": slow_stream,
}
_for_good = contextlib.ExitStack()


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    library.moe_sim_set_pending_error.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p]
    library.moe_sim_delay_stream.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    return library


@contextlib.contextmanager
def _observer(observe: launches.Observer) -> Iterator[None]:
    launches.observe(observe)
    try:
        yield
    finally:
        launches.leave(observe)


@contextlib.contextmanager
def _at_launch(operator: str, from_call: int, fault: Any) -> Iterator[None]:
    """Call `fault(name)` at launches of the operator from the `from_call`-th on."""
    if from_call < 1:
        raise ValueError(f"from_call must be 1 or more, got {from_call}")
    packet = _packet(operator)
    lock = threading.Lock()
    count = 0

    def due() -> bool:
        nonlocal count
        with lock:
            count += 1
            return count >= from_call

    def observe(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
        if (overload._schema.name == operator or overload.name() == operator) and due():
            fault(overload.name())

    if packet not in _NATIVE:
        with _observer(observe):
            yield
        return
    captured.prepare()  # a kernel that the first capture registers must lie below
    # torch_npu's kernel stays below: it is called while the fault is not due.
    space, name = _NATIVE[packet]
    below = native.kernel_below(packet, "PrivateUse1")
    if below is None:
        raise NotImplementedError(f"a fault in {packet} needs torch 2.9 or newer, this is torch {torch.__version__}")

    @compat.untraced
    def interpose(keys: Any, *args: Any, **kwargs: Any) -> Any:
        if due():
            fault(packet)
        return below(keys, *args, **kwargs)

    library = torch.library.Library(space, "IMPL")
    library.impl(name, interpose, "PrivateUse1", with_keyset=True)
    try:
        yield
    finally:
        compat.destroy(library)


def _packet(operator: str) -> str:
    """The name without the overload. Raises ValueError if there is no such operator."""
    packet, _, overload = operator.partition(".")
    space, _, name = packet.partition("::")
    found = getattr(getattr(torch.ops, space, None), name, None) if space and name else None
    if found is None or (overload and overload not in found.overloads()):
        raise ValueError(f'operator must be the name of one, "aten::mm" or "aten::mm.out", got {operator!r}')
    return packet
