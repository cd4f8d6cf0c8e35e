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
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _DistributedBackendOptions
from torch.distributed import distributed_c10d as c10d

from moe_graph.simulator.communication import dispatched, recorded
from moe_graph.simulator.communication.forms import Forms
from moe_graph.simulator.communication.launching import NAME, limited
from moe_graph.simulator.communication.messages import Messages
from moe_graph.simulator.communication.surface import Surface

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
    dispatched.install(SimulatedHccl)
    plugins[NAME.upper()] = plugins[NAME.upper()]._replace(creator_fn=_create, extended_api=True)
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
    """What torch calls for a new group. Options of ProcessGroupHCCL are checked and kept; there are no streams and buffers to configure.

    Raises NotImplementedError before torch 2.6, where a process group cannot be written in Python with the backends this one has.
    """
    if not hasattr(dist.ProcessGroup, "_set_default_backend"):
        raise NotImplementedError(
            f"hccl on the simulated device needs torch 2.6 or newer, this is torch {torch.__version__}"
        )
    return SimulatedHccl(options, getattr(_asked, "backends", {"npu": NAME}), backend_options)


class _SaysHccl:
    """torch's group and torch_npu's backend in one: isinstance says both."""

    @property
    def __class__(self) -> type:
        from torch_npu._C._distributed_c10d import ProcessGroupHCCL

        return ProcessGroupHCCL


class SimulatedHccl(Forms, Messages, Surface, _SaysHccl):
    """A process group over gloo for NPU tensors, and for CPU tensors if the program asked for "cpu:gloo,npu:hccl".

    Methods have the names and arguments of torch.distributed.ProcessGroup. They return at once; errors of the communication, a lost
    rank or ranks that do not call the same, are raised by the wait of the returned work as torch.distributed.DistBackendError.
    """

    supports_splitting = False  # nor has ProcessGroupHCCL it
    supports_shrinking = supports_tensor_alloc = supports_time_estimate = False
    supports_coalescing = True
    of_torch: dist.ProcessGroup | None = None
    """Stands for this group in operators of c10d, made when there is one."""

    def __init__(self, options: _DistributedBackendOptions, backends: dict[str, Any], asked: Any = None) -> None:
        super().__init__(options, backends, asked)
        # torch's C++ asks a group for the backends of its devices, to name it and to count; it communicates by the methods below.
        for device, kind in (
            ("npu", dist.ProcessGroup.BackendType.CUSTOM),
            ("cpu", dist.ProcessGroup.BackendType.GLOO),
        ):
            if device in self._gloo:
                self._register_backend(torch.device(device), kind, self._gloo[device])
        self._set_default_backend(dist.ProcessGroup.BackendType.CUSTOM)

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
        return NAME

    def name(self) -> str:
        return NAME

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def _set_sequence_number_for_group(self) -> None:
        for gloo in self._gloo.values():
            gloo._set_sequence_number_for_group()

    def _get_sequence_number_for_group(self) -> int:
        return self._meshes["npu"].count

    def set_timeout(self, timeout: timedelta) -> None:
        self._limit = limited(timeout)
        for gloo in self._gloo.values():
            gloo.set_timeout(self._limit)

    _set_default_timeout = set_timeout

    def eager_connect_single_device(self, device: torch.device | None) -> None:
        """Nothing to do: gloo has connected all ranks when the group was made."""
