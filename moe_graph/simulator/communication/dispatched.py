"""Communication by way of torch's dispatcher, wherever somebody looks at what passes there.

torch's own process groups, torch_npu's among them, make each communication an operator of c10d: modes see it (CommDebugMode,
FakeTensorMode, tracing), and tensors of classes with a `__torch_dispatch__` of their own are taken apart before it. A group in Python is
not asked to. So here the call goes through torch's C++ group where there is such a mode or tensor, and comes back in the operator's
kernel; else it goes straight on.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from moe_graph.foundation import compat
from moe_graph.simulator.communication.recorded import tensors_of
from moe_graph.simulator.runtime import native

_KEY = "PrivateUse1"
# Operators of c10d with tensors, and the methods that become them.
_METHODS = {
    "allreduce_": ["allreduce"],
    "allreduce_coalesced_": ["allreduce_coalesced"],
    "reduce_": ["reduce"],
    "broadcast_": ["broadcast"],
    "allgather_": ["allgather"],
    "allgather_coalesced_": ["allgather_coalesced"],
    "_allgather_base_": ["_allgather_base", "all_gather_single"],
    "allgather_into_tensor_coalesced_": ["allgather_into_tensor_coalesced", "all_gather_single_coalesced"],
    "reduce_scatter_": ["reduce_scatter"],
    "_reduce_scatter_base_": ["_reduce_scatter_base", "reduce_scatter_single"],
    "reduce_scatter_tensor_coalesced_": ["reduce_scatter_tensor_coalesced", "reduce_scatter_single_coalesced"],
    "gather_": ["gather"],
    "scatter_": ["scatter"],
    "alltoall_": ["alltoall"],
    "alltoall_base_": ["alltoall_base", "all_to_all_single"],
    "send": ["send"],
    "recv_": ["recv"],
    "recv_any_source_": ["recv_anysource"],
}

_library: torch.library.Library | None = None


class _Call(NamedTuple):
    group: Any
    group_of_torch: dist.ProcessGroup
    method: Callable[..., dist.Work]
    args: tuple
    kwargs: dict[str, Any]
    made: list[dist.Work]
    """The operator returns a handle of C++: what is Python's of it lives as long as this list."""


class _Going(threading.local):
    call: _Call | None = None


_going = _Going()


def install(group: type) -> None:
    """Have the communication of this class of process groups pass the dispatcher where somebody looks. Nothing before torch 2.9."""
    global _library
    if not hasattr(torch.library, "get_kernel"):
        return
    _library = torch.library.Library("c10d", "IMPL")
    for operator, methods in _METHODS.items():
        _library.impl(operator, _kernel(operator), _KEY, with_keyset=True)
        for name in methods:
            if hasattr(dist.ProcessGroup, name):
                setattr(group, name, _dispatched(name, getattr(group, name)))


def _dispatched(name: str, method: Callable[..., dist.Work]) -> Callable[..., dist.Work]:
    of_torch = getattr(dist.ProcessGroup, name)

    @functools.wraps(method)
    def communicate(self: Any, *args: Any, **kwargs: Any) -> dist.Work:
        if not self.has_values or not _is_looked_at(args):
            return method(self, *args, **kwargs)
        before = _going.call
        _going.call = call = _Call(self, _group_of_torch(self), method, args, kwargs, [])
        try:
            return of_torch(call.group_of_torch, *args, **kwargs)
        finally:
            _going.call = before

    return communicate


def _is_looked_at(args: tuple) -> bool:
    tensors = tensors_of(*args)
    return bool(tensors) and (
        torch._C._len_torch_dispatch_stack() > 0
        or any(torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python) for tensor in tensors)
    )


def _group_of_torch(group: Any) -> dist.ProcessGroup:
    """A group that is only an argument of operators."""
    if group.of_torch is None:
        group.of_torch = dist.ProcessGroup(group.rank(), group.size())
        group.of_torch._set_group_name(group.group_name)
    return group.of_torch


def _kernel(operator: str) -> Callable[..., Any]:
    schema = torch._C._get_schema(f"c10d::{operator}", "")
    position = [argument.name for argument in schema.arguments].index("process_group")
    gives_tensors = len(schema.returns) == 2
    own = native.kernel_below(f"c10d::{operator}", _KEY)
    assert own is not None

    @compat.untraced
    def communicate(keys: Any, *args: Any) -> Any:
        call = _going.call
        if call is None or dist.ProcessGroup.unbox(args[position]) is not call.group_of_torch:
            return own(keys, *args)
        # Operators have the tensors first, in the methods' order; what follows, options most of all, is as it was given.
        work = call.method(call.group, *args[:position], *call.args[position:], **call.kwargs)
        call.made.append(work)
        return (args[0], work.boxed()) if gives_tensors else work.boxed()

    return communicate
