"""The start of a device for a command. The simulated device stands above this room, and is imported by its name."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def simulator() -> Any:
    """`moe_graph.simulator`, whose import starts the device, and leaves a machine with CANN alone. None, with a line on stderr, if the
    device cannot start."""
    try:
        return importlib.import_module("moe_graph.simulator")
    except RuntimeError as error:
        if type(error).__name__ != "SimulatorError":  # the class lies in the package that cannot be imported
            raise
        print(f"moe_graph: {error}", file=sys.stderr)
        return None


def has_device(command: str) -> bool:
    """Is there a device to run on: the NPU where CANN is, else the simulated one? A line on stderr says why there is none."""
    started = simulator()
    if started is None:
        return False
    if started.is_active():
        return True
    import torch
    import torch_npu  # noqa: F401

    npu: Any = vars(torch)["npu"]  # added to torch by torch_npu
    if npu.is_available():
        return True
    print(f"moe_graph: CANN is installed, and torch_npu sees no NPU: {command} has nothing to run on", file=sys.stderr)
    return False
