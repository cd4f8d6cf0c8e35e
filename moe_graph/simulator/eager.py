"""Eager operators on NPU tensors, by the CPU's kernels.

The simulated device computes one operator itself. Debugging around it needs more: printing, comparing, building inputs. One boxed
function serves them all. It hands the operator's CPU kernel views of the same memory, and turns what is fresh among the results
into NPU tensors. Which operators: `eager_operators.OPERATORS`. All others fail with the device's error, which names the function.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe_graph.simulator import launches
from moe_graph.simulator.eager_operators import ACROSS_DEVICES, OPERATORS
from moe_graph.simulator.memory import cpu_view, is_npu, to_npu

_KEY = "PrivateUse1"
_libraries: list[torch.library.Library] = []
_default_generator_lock = threading.Lock()


def install() -> None:
    """Register the CPU-backed kernels of all listed operators for NPU tensors, over torch_npu's own. Idempotent."""
    if _libraries:
        return
    library = {space: torch.library.Library(space, "IMPL") for space in ("aten", "npu")}
    _libraries.extend(library.values())
    for packet in OPERATORS:
        for overload in _overloads(packet):
            library["aten"].impl(
                overload._schema.name.removeprefix("aten::") + _suffix(overload), kernel(overload), _KEY
            )
    for qualified, function in SPECIAL.items():
        space, name = qualified.split("::")
        library[space].impl(name, function, _KEY)


def _suffix(overload: torch._ops.OpOverload) -> str:
    return "." + overload._schema.overload_name if overload._schema.overload_name else ""


def _overloads(packet: str) -> list[torch._ops.OpOverload]:
    """The overloads of an operator that need a kernel for the device.

    One that decomposes into others (CompositeImplicitAutograd) does not, unless torch_npu has put a kernel of its own in its place;
    a name that this version of torch lacks has none.
    """
    operator = getattr(torch.ops.aten, packet, None)
    if operator is None:
        return []
    found = []
    for name in operator.overloads():
        overload = getattr(operator, name)
        qualified = overload._schema.name + _suffix(overload)
        if not _is_dispatched(overload):
            continue
        if not torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CompositeImplicitAutograd") or (
            torch._C._dispatch_has_kernel_for_dispatch_key(qualified, _KEY)
        ):
            found.append(overload)
    return found


def _is_dispatched(overload: torch._ops.OpOverload) -> bool:
    """Is it known to the dispatcher? Some overloads exist in TorchScript alone."""
    try:
        torch._C._dispatch_find_schema_or_throw(overload._schema.name, overload._schema.overload_name)
    except RuntimeError:
        return False
    return True


def kernel(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """The kernel of one operator for NPU tensors: the CPU's kernel on the same memory.

    Raises what the CPU's kernel raises, and RuntimeError if a CPU tensor is mixed in where a device would refuse it.
    """
    across = overload._schema.name.removeprefix("aten::") in ACROSS_DEVICES

    def call(*args: Any, **kwargs: Any) -> Any:
        _finish_pending()
        for observe in launches.observers:
            observe(overload, args, kwargs)
        pairs = _Pairs(str(overload), across)
        device = _result_device(args, kwargs)
        cpu_args, cpu_kwargs = pairs.to_cpu(args), {name: pairs.to_cpu(value) for name, value in kwargs.items()}
        if kwargs.get("device") is not None:
            cpu_kwargs["device"] = torch.device("cpu")
        generator = _generator(overload, kwargs, args, device)
        if generator is None:
            result = overload(*cpu_args, **cpu_kwargs)
        else:
            result = _draw(overload, cpu_args, cpu_kwargs, generator)
        pairs.write_back_resized()
        return pairs.to_device(result, device)

    call.__name__ = call.__qualname__ = f"simulated_{overload._schema.name.removeprefix('aten::')}"
    return call


def _finish_pending() -> None:
    """With torch_npu's task queue on, launches may still wait in it, and the memory is not ready. Errors of theirs surface here."""
    if os.environ.get("TASK_QUEUE_ENABLE", "1") != "0":
        torch.npu.synchronize()


class _Pairs:
    """NPU tensors of one call and their CPU views."""

    def __init__(self, operator: str, across_devices: bool) -> None:
        self._operator = operator
        self._across = across_devices
        self._pairs: list[tuple[Tensor, Tensor, torch.Size]] = []

    def to_cpu(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor_to_cpu(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_cpu(item) for item in value)
        return value

    def _tensor_to_cpu(self, tensor: Tensor) -> Tensor:
        if is_npu(tensor):
            for npu, cpu, _ in self._pairs:
                if npu is tensor:
                    return cpu
            view = cpu_view(tensor)
            self._pairs.append((tensor, view, view.shape))
            return view
        if tensor.dim() and not self._across:
            raise RuntimeError(
                f"{self._operator}: all tensors must be on the same device, but one {tuple(tensor.shape)} is on {tensor.device}"
            )
        return tensor

    def write_back_resized(self) -> None:
        """An out= tensor that the CPU kernel has resized lies in new memory: resize the caller's and copy."""
        for npu, cpu, shape in self._pairs:
            if cpu.shape != shape:
                npu.resize_(cpu.shape)
                cpu_view(npu).copy_(cpu)

    def to_device(self, value: Any, device: torch.device) -> Any:
        if isinstance(value, Tensor):
            for npu, cpu, _ in self._pairs:
                if cpu is value:
                    return npu
            return to_npu(value, device) if device.type == "npu" and value.device.type == "cpu" else value
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_device(item, device) for item in value)
        return value


def _tensors(values: Any):
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _result_device(args: tuple, kwargs: dict[str, Any]) -> torch.device:
    """Where fresh results go: the device that is asked for, else that of the first NPU tensor."""
    asked = kwargs.get("device")
    if asked is not None:
        asked = torch.device(asked)
        return torch.device("npu", torch.npu.current_device()) if asked.type == "npu" and asked.index is None else asked
    for tensor in _tensors((*args, *kwargs.values())):
        if is_npu(tensor):
            return tensor.device
    return torch.device("npu", torch.npu.current_device())


# ---- random numbers: the NPU generator's seed and offset decide, a CPU generator draws ----

_OFFSET_STEP = 4  # an NPU kernel moves the Philox offset on in multiples of 4


def _generator(
    overload: torch._ops.OpOverload, kwargs: dict, args: tuple, device: torch.device
) -> torch.Generator | None:
    """A CPU generator for this call, seeded by the state of the NPU's, which moves on; None if the operator draws nothing."""
    position = _generator_position(overload)
    if position is None and torch.Tag.nondeterministic_seeded not in overload.tags:
        return None
    if device.type != "npu":
        return None
    given = kwargs.get("generator")
    if given is None and position is not None and position < len(args):
        given = args[position]
    source = given if given is not None else torch.npu.default_generators[device.index or 0]
    if source.device.type == "cpu":
        return source
    state = source.get_state()
    seed, offset = state.view(torch.int64).tolist()
    state.view(torch.int64)[1] = offset + _OFFSET_STEP
    source.set_state(state)
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + offset) & (2**63 - 1))


def _generator_position(overload: torch._ops.OpOverload) -> int | None:
    for position, argument in enumerate(overload._schema.arguments):
        if argument.name == "generator":
            return position
    return None


def _draw(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any], generator: torch.Generator) -> Any:
    """Call the CPU's kernel with this generator, by argument or, where it has none (dropout), in place of the default one."""
    position = _generator_position(overload)
    if position is None:
        with _default_generator_lock, torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator.get_state())
            return overload(*args, **kwargs)
    if position < len(args):
        return overload(*args[:position], generator, *args[position + 1 :], **kwargs)
    return overload(*args, **{**kwargs, "generator": generator})


# ---- operators that torch_npu itself calls and the CPU has no kernel for ----


def _matmul_backward(
    grad: Tensor, left: Tensor, right: Tensor, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of matmul(left, right); vectors and broadcast batches as matmul takes them."""
    if left.dim() == 1 and right.dim() == 1:
        return (grad * right if mask[0] else None, grad * left if mask[1] else None)
    rows = left.unsqueeze(0) if left.dim() == 1 else left
    columns = right.unsqueeze(-1) if right.dim() == 1 else right
    out = grad.unsqueeze(-2) if left.dim() == 1 else grad
    out = out.unsqueeze(-1) if right.dim() == 1 else out
    for_left = (out @ columns.mT).sum_to_size(rows.shape).view(left.shape) if mask[0] else None
    for_right = (rows.mT @ out).sum_to_size(columns.shape).view(right.shape) if mask[1] else None
    return for_left, for_right


def _npu_dtype_cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """torch_npu's own cast, by the one of aten."""
    return torch.ops.aten._to_copy(tensor, dtype=dtype)


SPECIAL: dict[str, Callable[..., Any]] = {
    "aten::matmul_backward": _matmul_backward,
    "npu::npu_dtype_cast": _npu_dtype_cast,
}
