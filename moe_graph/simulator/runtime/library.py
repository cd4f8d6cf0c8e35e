"""The library that stands for CANN's, once it is loaded in this process."""

from __future__ import annotations

import ctypes

from moe_graph.simulator.runtime.errors import SimulatorError

_loaded: list[ctypes.CDLL] = []


def keep(library: ctypes.CDLL) -> None:
    """The simulated device runs on this library from now on."""
    _loaded.append(library)


def is_loaded() -> bool:
    """Does the simulated device run in this process?"""
    return bool(_loaded)


def runtime() -> ctypes.CDLL:
    """The library. Raises SimulatorError if the simulated device does not run."""
    if not _loaded:
        raise SimulatorError("the simulated device does not run in this process: import moe_graph.simulator")
    return _loaded[0]


def soc_name() -> str:
    """CANN's name of the simulated product: "Ascend910B1"."""
    function = runtime().aclrtGetSocName
    function.restype = ctypes.c_char_p
    return function().decode()


def device_count() -> int:
    """How many devices this process sees."""
    count = ctypes.c_uint32()
    runtime().aclrtGetDeviceCount(ctypes.byref(count))
    return count.value
