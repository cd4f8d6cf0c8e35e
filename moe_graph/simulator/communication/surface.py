"""What torch_npu's ProcessGroupHCCL offers beside collectives: options, names, ids of streams, groups of calls, abort and resumption.

What needs a communicator of HCCL itself (its handle, windows of memory, spare network cards) is an error that names it.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch

from moe_graph.simulator.communication.launching import NAME, Launcher
from moe_graph.simulator.communication.work import SimulatedWork

_LONGEST_NAME = 127
_INT32 = 2**31 - 1
_TYPES = {
    **dict.fromkeys(("group_name", "hccl_algo", "hccl_retry_enable", "hccl_retry_params", "hccl_buffer_name"), str),
    **dict.fromkeys(("hccl_buffer_size", "qos_traffic_class", "qos_service_level", "hccl_sdma_qos"), int),
    **dict.fromkeys(("hccl_op_expansion_mode", "hccl_world_rank_id", "hccl_job_id", "hccl_exec_timeout"), int),
}


def _check_config(config: dict[str, Any]) -> None:
    """In torch_npu's words. Raises RuntimeError for a value of another type."""
    for name, value in config.items():
        kind = _TYPES.get(name)
        if kind is not None and not isinstance(value, kind):
            raise RuntimeError(f"Value type of {name} should be {'string' if kind is str else 'int'}.")
    if config.get("hccl_exec_timeout", 0) > _INT32:
        raise RuntimeError(f"Value type of hccl_exec_timeout exceeds INT32_MAX({_INT32}).")


class Surface(Launcher):
    """The rest of ProcessGroupHCCL."""

    def __init__(self, options: Any, backends: dict[str, Any], asked: Any = None) -> None:
        """`asked`: ProcessGroupHCCL.Options, or None."""
        self._options = self._own_options(options, asked)
        self._config_is_right = False
        self._own_name = ""
        self._name_is_known = False
        self._streams: dict[Any, Any] = {}
        self._communicated = False
        self._grouped: list[SimulatedWork] | None = None
        super().__init__(options, backends)

    @staticmethod
    def _own_options(given: Any, asked: Any) -> Any:
        from torch_npu._C._distributed_c10d import ProcessGroupHCCL

        made = ProcessGroupHCCL.Options()
        for name in ("op_timeout", "is_high_priority_stream", "hccl_config", "group_id"):
            if hasattr(asked, name):  # older ones have fewer
                setattr(made, name, getattr(asked, name))
        for name, value in (("global_ranks_in_group", list(given.global_ranks_in_group)), ("_timeout", given.timeout)):
            if hasattr(made, name):
                setattr(made, name, value)
        return made

    @property
    def options(self) -> Any:
        """ProcessGroupHCCL.Options, a copy of what the group was made with."""
        return self._options

    def _issue(self, work: SimulatedWork, start: Any) -> SimulatedWork:
        if not self._config_is_right:
            _check_config(self._options.hccl_config)  # HCCL reads it when the communicator is made
            self._config_is_right = True
        issued = super()._issue(work, start)
        self._communicated = True
        return issued

    def _collect(self, work: SimulatedWork) -> None:
        super()._collect(work)
        if self._grouped is not None:
            self._grouped.append(work)

    # ---- names ----

    def get_hccl_comm_name(self, rank: int, *_: Any, init_comm: bool = True) -> str:
        """The communicator's name, as operators that communicate take it."""
        self._name_is_known = True
        return self._own_name or f"simulated_{self._id}_{rank}"

    def _set_hccl_comm_name(self, name: str) -> None:
        """Raises RuntimeError for a name of no or more than 127 characters, and for another than the communicator has already."""
        if not 1 <= len(name) <= _LONGEST_NAME:
            raise RuntimeError(
                f"The length of the name must be between 1 and {_LONGEST_NAME}, Invalid hcclCommName:{name}"
            )
        has = self._own_name or (self.get_hccl_comm_name(self._rank) if self._name_is_known else "")
        if has and has != name:
            raise RuntimeError(
                "The current ProcessGroup has already set the name and cannot be duplicated, "
                f"Invalid hcclCommName:{name}, current hcclCommName:{has}"
            )
        self._own_name = name

    # ---- streams: gloo has none; whoever asks gets one of the device, on which nothing runs ----

    def _stream_id(self, key: Any, device: Any) -> int:
        if key not in self._streams:
            self._streams[key] = torch.npu.Stream(device)
        return int(self._streams[key].stream_id)

    def get_coll_stream_id(self, device: Any) -> int:
        """-1 before the first communication."""
        return self._stream_id("collectives", device) if self._communicated else -1

    def get_p2p_stream_id(self, device: Any, peer: int, is_batched: int) -> int:
        """-1 before the first message to or from this peer."""
        return self._get_stream_id(True, peer) if peer in self._talked_to else -1

    def _get_stream_id(self, p2p: bool = False, peer: int = -1) -> int:
        """Messages have a stream by peer, unless P2P_HCCL_BUFFSIZE is 0."""
        device = torch.device("npu", torch.npu.current_device())
        key = ("messages", peer) if p2p and os.environ.get("P2P_HCCL_BUFFSIZE") != "0" else "collectives"
        return self._stream_id(key, device)

    # ---- several calls as one ----

    def _group_start(self) -> None:
        """From here to `_group_end` calls are one: whoever waits for one of them waits for all."""
        self._grouped = []

    def _group_end(self) -> None:
        for work in self._grouped or []:
            work.companions = list(self._grouped or [])
        self._grouped = None

    # ---- recovery ----

    def set_watchdog_status(self, status: int) -> None:
        """torch_npu's watchdog: 1 runs, 2 is stopped. Nothing to do: here the waits themselves see what it would."""

    def clear_workmeta_list(self) -> None:
        """Forget the works that nobody waits for."""
        with self._lock:
            self._pending.clear()

    def _delete_tcpstore_key(self) -> None:
        """Nothing to do: new connections have keys of their own."""

    def abort_hccl_comm(self, options: str = "") -> None:
        """Close the connections; all ranks do. The next communication makes new ones."""
        self._renew()

    def resume_hccl_comm(self, device_id: int) -> None:
        """As `abort_hccl_comm`: what is left of before does not disturb."""
        self._renew()

    def _add_ephemeral_timeout(self, timeout: timedelta) -> None:
        """The next communication may take so much longer."""
        self._extra_time += timeout

    # ---- what needs HCCL ----

    def get_hccl_comm(self, rank: int) -> int:
        raise NotImplementedError("get_hccl_comm: there is no HcclComm on the simulated device")

    def _set_switch_nic_comm(self, rankid: int, nRanks: int, ranks: Any = (), useBackup: Any = ()) -> bool:
        raise NotImplementedError("_set_switch_nic_comm: there are no network cards on the simulated device")

    def _window_register_and_exchange(self, window_size: int, peer_ranks: Any) -> None:
        raise NotImplementedError("_window_register_and_exchange: HCCL's windows are not simulated")

    def _get_window_mem(self) -> Any:
        raise NotImplementedError("_get_window_mem: HCCL's windows are not simulated")


def _lacking(name: str) -> Any:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"Backend {NAME} does not support {name}")

    refuse.__name__ = name
    refuse.__doc__ = "ProcessGroupHCCL has this of torch's backends, and does not support it. Raises RuntimeError."
    return refuse


for _name in (
    "allocate_tensor",
    "memory_stats",
    "suspend",
    "resume",
    "shrink",
    "register_mem_pool",
    "deregister_mem_pool",
):
    setattr(Surface, _name, _lacking(_name))
Surface.mem_allocator = property(_lacking("mem_allocator"))
