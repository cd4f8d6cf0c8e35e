"""An operator on a captured stream: its results get memory now, by its fake implementation, and its computation is recorded.

What the recorded function holds are views of raw memory: it keeps no tensor of the device alive, as a captured kernel does not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from moe_graph.foundation import compat
from moe_graph.simulator.eager import random_numbers as eager_random
from moe_graph.simulator.eager.exceptions import EMPTY_WITHOUT, HOST_PARAMETERS
from moe_graph.simulator.runtime import captured, launches
from moe_graph.simulator.runtime.tensors import borrowed_view, is_host_memory_of_device, npu_alias

_CPU = torch.device("cpu")
_TAKE_HOST_TENSORS = HOST_PARAMETERS | {"aten::copy_", "aten::_copy_from"}


class Operator(Protocol):
    """What is recorded: `call.Operator`."""

    overload: torch._ops.OpOverload
    function: Callable[..., Any]
    position: int | None
    draws: bool


def stream_of(args: tuple, kwargs: dict[str, Any]) -> tuple[torch.device, int]:
    """(device, raw stream) that an operator with these arguments is launched on."""
    device = _device(args) or _device(tuple(kwargs.values()))
    if device is None:
        asked = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        device = asked if asked is not None and asked.type == "npu" and asked.index is not None else None
    if device is None:
        device = torch.device("npu", torch.npu.current_device())
    return device, torch.npu.current_stream(device).npu_stream


def _device(values: Any) -> torch.device | None:
    for value in values:
        if isinstance(value, Tensor) and value.device.type == "npu":
            return value.device
        if isinstance(value, (list, tuple)):
            found = _device(value)
            if found is not None:
                return found
    return None


def record(
    operator: Operator, args: tuple, kwargs: dict[str, Any], device: torch.device, stream: int, seeded: bool = False
) -> Any:
    """The operator's results, with memory and no values yet; a replay computes them. `seeded`: its function takes a seed and an offset.

    Raises torch_npu's error of a wait for a captured stream if the host needs values, NotImplementedError if the operator has no fake
    implementation, and what that raises.
    """
    overload = operator.overload
    _refuse_waits(overload, args, kwargs)
    arguments = Arguments(overload)
    metas, meta_kwargs = arguments.metas(args, kwargs)
    asked = kwargs.get("device")
    result_device = device if asked is None else torch.device(asked)
    results = _fake(operator, metas, meta_kwargs)
    arguments.resize()
    cpu_args = [arguments.to_cpu(value) for value in args]
    cpu_kwargs = {name: arguments.to_cpu(value) for name, value in kwargs.items()}
    if asked is not None:
        cpu_kwargs["device"] = _CPU
    name = str(overload)
    # In an update the graph is another's, and its own pool is not known here.
    graph = captured.graph_of(stream) if captured.state(stream) == captured.CAPTURED else None
    flat = list(results) if isinstance(results, (list, tuple)) else [results]
    made = [arguments.adopt(value, result_device) for value in flat]
    targets = [
        borrowed_view(npu) if fresh and npu.device.type == "npu" else npu if fresh else None for npu, fresh in made
    ]
    function = operator.function
    if (operator.draws or seeded) and result_device.type == "npu":
        function = _drawing(operator, function, args, kwargs, result_device, graph, seeded)
    new = [npu for npu, fresh in made if fresh and npu.device.type == "npu"]
    launch = _launch(operator, function, cpu_args, cpu_kwargs, targets)
    captured.record(stream, name, launch, arguments.device_tensors(), new)
    handed = [npu for npu, _ in made]
    if isinstance(results, (list, tuple)):
        return handed if isinstance(results, list) else tuple(handed)
    return handed[0]


def _refuse_waits(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
    """What the host must wait for cannot be captured: torch_npu's own error, from its own wait."""
    traffic = launches.host_traffic(overload, args, kwargs)
    why = traffic.why if traffic is not None and traffic.waits else None
    if why is None and overload._schema.name not in _TAKE_HOST_TENSORS:
        if any(
            isinstance(value, Tensor) and value.is_cpu and value.dim() for value in _flat((*args, *kwargs.values()))
        ):
            why = "a tensor of the host is copied to the device"
    if why is None:
        return
    try:
        torch.npu.current_stream(_device(args)).synchronize()
    except RuntimeError as error:
        raise RuntimeError(f"{overload} cannot be captured ({why}): {error}") from error


def _flat(values: Any) -> list[Any]:
    found = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _flat(value)
        else:
            found.append(value)
    return found


def _fake(operator: Operator, metas: list[Any], kwargs: dict[str, Any]) -> Any:
    """The results as meta tensors."""
    if operator.position is not None:
        if operator.position < len(metas):
            metas = [*metas[: operator.position], None, *metas[operator.position + 1 :]]
        elif "generator" in kwargs:
            kwargs = {**kwargs, "generator": None}
    schema = operator.overload._schema
    if not schema.returns:
        return None  # it writes to tensors that it is given
    try:
        results = operator.overload(*metas, **kwargs)
        for name, place in EMPTY_WITHOUT.get(schema.name, {}).items():
            value = compat.given_by_name(schema, metas, kwargs).get(name)
            if not isinstance(value, Tensor) and not value:
                results = (*results[:place], results[place].new_empty(0), *results[place + 1 :])
        return results
    except NotImplementedError as error:
        given = returned_as_written(schema, metas, kwargs)
        if given is not None:
            return given
        try:
            return operator.function(*metas, **kwargs)
        except NotImplementedError:
            raise NotImplementedError(
                f"{operator.overload} cannot be captured: it has no fake implementation to tell the shapes of its results"
            ) from error


def written(schema: torch._C.FunctionSchema, metas: list[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operator writes to, in the shapes that they have. torch_npu declares some as a plain list `out`."""
    given = compat.given_by_name(schema, metas, kwargs)
    return [
        value
        for argument in schema.arguments
        if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name == "out"
        for value in _flat([given.get(argument.name)])
        if isinstance(value, Tensor)
    ]


def returned_as_written(schema: torch._C.FunctionSchema, metas: list[Any], kwargs: dict[str, Any]) -> Any:
    """The results of an operator that returns the tensors it writes to, as many as these; None if it returns others."""
    given = written(schema, metas, kwargs)
    if len(given) != len(schema.returns):
        return None
    return given[0] if len(given) == 1 else tuple(given)


class Arguments:
    """The tensors of one launch, as meta tensors and as views of raw memory."""

    def __init__(self, overload: torch._ops.OpOverload) -> None:
        self._overload = overload
        self._metas: dict[int, tuple[Tensor, Tensor]] = {}  # by id of the tensor: (tensor, meta)
        self._bases: dict[tuple[int, torch.dtype], Tensor] = {}
        self._baked: dict[int, Tensor] = {}

    def device_tensors(self) -> list[Tensor]:
        return [tensor for tensor, _ in self._metas.values() if tensor.device.type == "npu"]

    def metas(self, args: tuple, kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the launch for its fake implementation."""
        positional = [self.to_meta(value) for value in args]
        named = {name: self.to_meta(value) for name, value in kwargs.items()}
        if named.get("device") is not None:
            named["device"] = torch.device("meta")
        return positional, named

    def to_meta(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self.to_meta(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        known = self._metas.get(id(value))
        if known is None:
            known = self._metas[id(value)] = (value, self._meta(value))
        return known[1]

    def _meta(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = (storage.data_ptr(), tensor.dtype) if storage.nbytes() else (id(tensor), tensor.dtype)
        base = self._bases.get(key)
        if base is None:
            base = torch.empty(storage.nbytes() // tensor.element_size(), dtype=tensor.dtype, device="meta")
            self._bases[key] = base
        meta = base.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        if tensor.is_conj():
            meta = torch._conj(meta)
        return torch._neg_view(meta) if tensor.is_neg() else meta

    def resize(self) -> None:
        """Results that the caller has given (out=) take the shape that they get."""
        for tensor, meta in self._metas.values():
            if meta.shape != tensor.shape and tensor.device.type == "npu":
                tensor.resize_(meta.shape)

    def to_cpu(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self.to_cpu(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        if value.device.type == "npu" or is_host_memory_of_device(value):
            return borrowed_view(value)
        if value.dim() and self._overload._schema.name not in HOST_PARAMETERS:
            return value  # pinned memory, read or written at each replay
        return self._baked.setdefault(id(value), value.clone()) if value.is_cpu else value

    def given(self, meta: Tensor) -> Tensor | None:
        """The tensor of the launch that a meta tensor stands for; None if it is another one."""
        return next((tensor for tensor, known in self._metas.values() if known is meta), None)

    def adopt(self, meta: Any, device: torch.device) -> tuple[Any, bool]:
        """(what the caller gets for a result, is its memory new?)"""
        if not isinstance(meta, Tensor):
            return meta, False
        given = self.given(meta)
        if given is not None:
            return given, False
        start = meta.untyped_storage()._cdata
        for tensor, known in self._metas.values():
            if tensor.device.type == "npu" and known.untyped_storage()._cdata == start:
                return npu_alias(meta, tensor), False
        strides = torch.empty_like(meta, memory_format=torch.preserve_format).stride()
        pinned = {"pin_memory": True} if device.type == "cpu" else {}
        return torch.empty_strided(meta.size(), strides, dtype=meta.dtype, device=device, **pinned), True


def _drawing(
    operator: Operator, function, args, kwargs, device: torch.device, graph: captured.Graph | None, seeded: bool
):
    """The function with random numbers of the graph's generator, from the offset that this launch has in the graph."""
    if graph is None:
        raise NotImplementedError(f"{operator.overload}: a launch that draws random numbers cannot be updated")
    position = operator.position
    given = kwargs.get("generator")
    if given is None and position is not None and position < len(args):
        given = args[position]
    source = given if given is not None else torch.npu.default_generators[device.index or 0]
    if source.device.type == "cpu":
        return lambda *a, **k: eager_random.draw(function, list(a), k, position, source)
    offset = eager_random.advance(source)[1]
    draws = graph.draws.get(id(source))
    if draws is None:
        # The state as it is now: the generator object may be given another one later.
        kept = source.graphsafe_get_state() if hasattr(source, "graphsafe_get_state") else source
        draws = graph.draws[id(source)] = captured.Draws(kept)

    def drawn(*a: Any, **k: Any) -> Any:
        if seeded:
            return function(*a, **k, seed=draws.seed, offset=draws.base + offset)
        generator = eager_random.seeded(draws.seed, draws.base + offset)
        return eager_random.draw(function, list(a), k, position, generator)

    return drawn


def _launch(
    operator: Operator,
    function: Callable[..., Any],
    args: list[Any],
    kwargs: dict[str, Any],
    targets: list[Tensor | None],
) -> Callable[[], Any]:
    if compat.is_cpu_autocast_enabled():
        function = _without_autocast(function)
    if not any(target is not None for target in targets):
        return functools.partial(function, *args, **kwargs)
    return functools.partial(_into, operator.overload, function, args, kwargs, targets)


def _into(overload, function, args, kwargs, targets) -> list[Any]:
    results = function(*args, **kwargs)
    for value, target in zip(results if isinstance(results, (list, tuple)) else (results,), targets):
        if target is None:
            continue
        if value.shape != target.shape or value.dtype != target.dtype:
            raise RuntimeError(
                f"{overload}: the replay gives {value.dtype} {list(value.shape)}, its fake implementation said "
                f"{target.dtype} {list(target.shape)} at the capture"
            )
        target.copy_(value)
    return targets


_AUTOCAST_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_CPU):
            return function(*args, **kwargs)

    return call
