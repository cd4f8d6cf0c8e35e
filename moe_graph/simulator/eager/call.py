"""One operator on NPU tensors, by a function on CPU tensors: the way that all eager operators go.

The CPU's function gets views of the same memory. What it changes is changed; a result that is one of its arguments, or lies in their
memory, is that again on the NPU; what is fresh becomes a new NPU tensor. Devices and generators are translated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from moe_graph.foundation import compat
from moe_graph.operators.declaration import qualname_of
from moe_graph.simulator.eager import profiled, record
from moe_graph.simulator.eager import random_numbers as eager_random
from moe_graph.simulator.eager.exceptions import (
    ACROSS_DEVICES,
    DIMENSIONS_CHECKED,
    GIVEN_SEED,
    HOST_RESULTS,
    LISTS_ACROSS_DEVICES,
    SEEDED,
    TYPES_CHECKED,
)
from moe_graph.simulator.runtime import captured, launches
from moe_graph.simulator.runtime.tensors import (
    borrowed_view,
    is_host_memory_of_device,
    npu_alias,
    shared_view,
    to_npu,
)

_CPU = torch.device("cpu")
_NOT_RESIZABLE = "resize storage that is not resizable"


class ArgumentError(RuntimeError, ValueError):
    """What a function of `moe_graph.operators` refuses: ValueError there, RuntimeError where torch_npu's kernel checks it."""


class Operator:
    """How one operator of the dispatcher is served for NPU tensors.

    `function`: what computes it, on CPU tensors; by default the operator itself. `is_special`: it draws, or has results that stay on the
    host. Calling raises what that raises, and RuntimeError
    if tensors of several devices are mixed where a device refuses it.
    """

    def __init__(self, overload: torch._ops.OpOverload, function: Callable[..., Any] | None = None) -> None:
        schema = overload._schema
        qualified = qualname_of(overload)
        self.overload = overload
        self.function = with_tensors(overload) if function is None else _with_dtypes(function, schema)
        everywhere = qualified in ACROSS_DEVICES or _is_foreach_in_place(schema)
        self._across = _Across(everywhere, everywhere or qualified in LISTS_ACROSS_DEVICES)
        self._host_results = HOST_RESULTS.get(qualified, ())
        self._is_seeded = qualified in SEEDED
        self._seeds_are_results = qualified in HOST_RESULTS  # tensors, which are the device's in a captured graph
        self.position = eager_random.generator_position(overload)
        by_tag = torch.Tag.nondeterministic_seeded in overload.tags and qualified not in SEEDED | GIVEN_SEED
        self.draws = self.position is not None or by_tag
        self._outs = tuple(argument.name for argument in schema.arguments if argument.is_out)
        self.is_special = bool(self._is_seeded or self.draws or self._host_results)
        self._is_plain = not self.is_special and all(a.name != "device" for a in schema.arguments)
        # An overload hands all on to its handle; a call less.
        self._compute = self.function._op if isinstance(self.function, torch._ops.OpOverload) else self.function

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        for observe in launches.observers:
            observe(self.overload, args, kwargs)
        if captured.is_special():
            device, stream = record.stream_of(args, kwargs)
            state = captured.state(stream)
            if state == captured.WAITING:
                raise captured.failure(str(self.overload), 507046)
            if state != captured.ORDINARY:
                wants_seed = self._wants_seed(args, kwargs)
                if wants_seed and not self._seeds_are_results:
                    raise RuntimeError(
                        f"{self.overload}: dropout cannot be captured, as its seed is a number of the host's; "
                        "npu_fusion_attention_v3 has it in a tensor"
                    )
                return record.record(self, args, kwargs, device, stream, wants_seed)
        compute = self._recorded if profiled.is_recording() else self._call
        if (
            compat.is_cpu_autocast_enabled()
        ):  # the NPU's dtypes are settled already, the CPU's autocast must not change them
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_CPU):
                return compute(args, kwargs)
        return compute(args, kwargs)

    def _recorded(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        return profiled.computed(self.overload, self._call, args, kwargs)

    def _call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        try:
            if self._is_plain and not kwargs:
                result = self._run_plain(args)
                if result is not _LOOK_CLOSER:
                    return result
            return self._run(_Tensors(self.overload, self._across), args, kwargs)
        except NotImplementedError as error:
            name = self.overload._schema.name.partition("::")[2].rstrip("_")
            if name in str(error):
                raise
            raise NotImplementedError(f"{self.overload} on the simulated device: {error}") from error
        except ValueError as error:
            if self.overload.namespace == "aten" or isinstance(error, ArgumentError):
                raise
            raise ArgumentError(str(error)) from error
        except (IndexError, TypeError) as error:
            if self.overload._schema.name in (DIMENSIONS_CHECKED if isinstance(error, IndexError) else TYPES_CHECKED):
                raise RuntimeError(str(error)) from error
            raise
        except RuntimeError as error:
            if not self._outs or _NOT_RESIZABLE not in str(error):
                raise
        # An out= tensor must grow: it is computed in new memory, and copied.
        return self._run(_Tensors(self.overload, self._across, self._outs), args, kwargs)

    def _run_plain(self, args: tuple) -> Any:
        """The most usual call in few steps: tensors of one NPU and numbers, by position, which no operator gives another shape.

        _LOOK_CLOSER, with nothing computed, if it is none.
        """
        device: torch.device | None = None
        pairs: list[_Pair] = []
        cpu_args = []
        for value in args:
            if isinstance(value, Tensor):
                if device is None:
                    device = value.device
                    if device.type != "npu":
                        return _LOOK_CLOSER
                elif value.device != device:
                    return _LOOK_CLOSER
                view = shared_view(value)
                pairs.append((value, view, None, False))
                cpu_args.append(view)
            elif isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
                return _LOOK_CLOSER
            else:
                cpu_args.append(value)
        if device is None:
            return _LOOK_CLOSER
        result = self._compute(*cpu_args)
        if isinstance(result, Tensor):
            return _on_device(result, device, pairs)
        return self._results(_Tensors(self.overload, self._across, pairs=pairs), result, device)

    def _run(self, tensors: _Tensors, args: tuple, kwargs: dict[str, Any]) -> Any:
        cpu_args = [tensors.to_cpu(value) for value in args]
        cpu_kwargs = kwargs
        if kwargs:
            cpu_kwargs = {
                name: tensors.out_to_cpu(value, name) if name in self._outs else tensors.to_cpu(value, name)
                for name, value in kwargs.items()
            }
        asked = kwargs.get("device")
        if asked is None:
            device = tensors.device or torch.device("npu", torch.npu.current_device())
        else:
            asked = torch.device(asked)
            cpu_kwargs["device"] = _CPU
            unnumbered = asked.type == "npu" and asked.index is None
            device = torch.device("npu", torch.npu.current_device()) if unnumbered else asked
        if device.type == "npu" and self._wants_seed(args, kwargs):
            seed, offset = eager_random.advance(torch.npu.default_generators[device.index or 0])
            given = compat.given_by_name(self.overload._schema, cpu_args, cpu_kwargs)
            cpu_kwargs = {**given, "seed": seed, "offset": offset}
            cpu_args = []
        if self.draws and device.type == "npu":
            given = kwargs.get("generator")
            if given is None and self.position is not None and self.position < len(args):
                given = args[self.position]
            generator = eager_random.cpu_generator(given, device)
            result = eager_random.draw(self.function, cpu_args, cpu_kwargs, self.position, generator)
        else:
            result = self.function(*cpu_args, **cpu_kwargs)
        tensors.write_back()
        return self._results(tensors, result, device)

    def _results(self, tensors: _Tensors, result: Any, device: torch.device) -> Any:
        if isinstance(result, Tensor):
            return tensors.to_device(result, device)
        if isinstance(result, (list, tuple)):
            # A named tuple of torch becomes a plain one: the dispatcher names it again.
            return (list if isinstance(result, list) else tuple)(
                item if place in self._host_results else tensors.to_device(item, device)
                for place, item in enumerate(result)
            )
        return result

    def _wants_seed(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Does the operator draw by a seed that the caller has not given?"""
        if not self._is_seeded:
            return False
        given = compat.given_by_name(self.overload._schema, args, kwargs)
        drawn = given.get("keep_prob", 1.0) != 1.0 and given.get("dropout_mask") is None
        return drawn and not given.get("seed")


# These take a number for a tensor, too.
_TAKE_NUMBERS = (
    "aten::add",
    "aten::sub",
    "aten::mul",
    "aten::div",
    "aten::true_divide",
    "aten::floor_divide",
    "aten::copy",
)


def with_tensors(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """The dispatcher hands a number over that torch has wrapped as a tensor (`x |= 4`); an operator wants a tensor there."""
    schema = overload._schema
    positions = [
        i for i, argument in enumerate(schema.arguments) if str(argument.type) == "Tensor" and not argument.kwarg_only
    ]
    if len(positions) < 2 or schema.name.rstrip("_") in _TAKE_NUMBERS:
        return overload

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(args[position], (int, float, complex)) for position in positions if position < len(args)):
            first = next((value for value in args if isinstance(value, Tensor)), None)
            args = tuple(
                torch.tensor(value, dtype=None if first is None else torch.result_type(first, value))
                if position in positions and isinstance(value, (int, float, complex))
                else value
                for position, value in enumerate(args)
            )
        return overload(*args, **kwargs)

    return call


def _is_foreach_in_place(schema: torch._C.FunctionSchema) -> bool:
    """An operator on each tensor of one list, in place: a device takes lists of several devices, and works tensor by tensor then."""
    return schema.name.startswith("aten::_foreach_") and schema.name.endswith("_") and len(schema.arguments) == 1


def _with_dtypes(function: Callable[..., Any], schema: torch._C.FunctionSchema) -> Callable[..., Any]:
    """The dispatcher hands dtypes over as their numbers; an operator takes those, a function of ours gets dtypes."""
    names = [argument.name for argument in schema.arguments]
    dtypes = [name for name, argument in zip(names, schema.arguments) if "ScalarType" in str(argument.real_type)]
    if not dtypes:
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        args = tuple(as_dtype(value) if name in dtypes else value for name, value in zip(names, args))
        return function(*args, **{name: as_dtype(value) if name in dtypes else value for name, value in kwargs.items()})

    return call


def as_dtype(value: Any) -> Any:
    """The dtype of torch's number for it; what is no number stays as it is. Raises RuntimeError for a number torch has not."""
    return torch.ops.aten.empty([0], dtype=value).dtype if isinstance(value, int) else value


class _Across(NamedTuple):
    """Where a call takes CPU tensors with dimensions beside NPU ones: as arguments, and in lists of tensors."""

    alone: bool
    in_lists: bool


_LOOK_CLOSER = object()
_Pair = tuple[Tensor, Tensor, Optional[torch.Size], bool]
"""An NPU tensor, its CPU view, the shape it came with, and: is the view memory of its own?"""


def _on_device(value: Tensor, device: torch.device, pairs: list[_Pair]) -> Tensor:
    """A result on the NPU: the argument that it is, an alias of the argument in whose memory it lies, or a new tensor."""
    for npu, cpu, _, _ in pairs:
        if cpu is value:
            return npu
    if not value.is_cpu or device.type != "npu":
        return value
    if value.layout is torch.strided:
        start = value.untyped_storage().data_ptr()
        for npu, _, _, fresh in pairs:
            if start and not fresh and npu.untyped_storage().data_ptr() == start:
                return npu_alias(value, npu)
    return to_npu(value, device)


class _Tensors:
    """NPU tensors of one call and their CPU views. `device`: that of the first NPU tensor. `fresh`: arguments not to share."""

    __slots__ = ("_overload", "_across", "_fresh", "_pairs", "device")

    def __init__(
        self,
        overload: torch._ops.OpOverload,
        across: _Across,
        fresh: tuple[str, ...] = (),
        pairs: list[_Pair] | None = None,
    ) -> None:
        self._overload = overload
        self._across = across
        self._fresh = fresh
        self._pairs: list[_Pair] = [] if pairs is None else pairs
        self.device: torch.device | None = None

    def to_cpu(self, value: Any, name: str = "") -> Any:
        if isinstance(value, Tensor):
            return self._tensor_to_cpu(value, name in self._fresh, self._across.alone)
        if isinstance(value, (list, tuple)):
            return [
                self._tensor_to_cpu(item, name in self._fresh, self._across.in_lists)
                if isinstance(item, Tensor)
                else item
                for item in value
            ]
        return value

    def out_to_cpu(self, value: Any, name: str) -> Any:
        """An out= tensor, which is the device's whatever its dimensions."""
        if (
            isinstance(value, Tensor)
            and value.is_cpu
            and not is_host_memory_of_device(value)
            and not self._across.alone
        ):
            self._refuse(value, self.device or "npu")
        return self.to_cpu(value, name)

    def _tensor_to_cpu(self, tensor: Tensor, fresh: bool, across: bool) -> Tensor:
        if tensor.is_cpu:
            if is_host_memory_of_device(tensor):
                view = borrowed_view(tensor)
                self._pairs.append((tensor, view, tensor.size(), False))
                return view
            if tensor.dim() and not across:
                self._refuse(tensor, self.device or "npu")
            return tensor
        for npu, cpu, _, _ in self._pairs:
            if npu is tensor:
                return cpu
        device = tensor.device
        if device.type != "npu":
            self._refuse(tensor, self.device or "npu")
        if self.device is None:
            self.device = device
        elif device != self.device and tensor.dim() and not across:
            self._refuse(tensor, self.device)
        if fresh:
            view = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        else:
            view = borrowed_view(tensor)
        self._pairs.append((tensor, view, tensor.size(), fresh))
        return view

    def _refuse(self, tensor: Tensor, other: object) -> None:
        """In the words of torch_npu's check of a launch, and of torch's where both tensors are on an NPU."""
        said = (
            ". Expected NPU tensor, please check whether the input tensor device is correct"
            if tensor.is_cpu
            else f", but found at least two devices, {other} and {tensor.device}"
        )
        raise RuntimeError(
            f"Expected all tensors to be on the same device{said}. Of {self._overload} one, {tuple(tensor.shape)}, is on "
            f"{tensor.device} and another on {other}"
        )

    def write_back(self) -> None:
        """An out= tensor that was resized in its memory: so is the caller's. One computed in new memory: resize and copy."""
        for npu, cpu, shape, fresh in self._pairs:
            if not fresh and cpu.shape == shape:
                continue
            if not fresh and cpu.untyped_storage().data_ptr() == npu.untyped_storage().data_ptr():
                npu.set_(npu.untyped_storage(), cpu.storage_offset(), cpu.size(), cpu.stride())
                continue
            if cpu.shape != shape:
                npu.resize_(cpu.shape)
                npu.set_(npu.untyped_storage(), 0, cpu.size(), cpu.stride())  # not as_strided_: it crashes in torch 2.5
            borrowed_view(npu).copy_(cpu)

    def to_device(self, value: Any, device: torch.device) -> Any:
        if isinstance(value, Tensor):
            return _on_device(value, device, self._pairs)
        if isinstance(value, (list, tuple)):
            return [self.to_device(item, device) for item in value]
        return value


_AUTOCAST_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
