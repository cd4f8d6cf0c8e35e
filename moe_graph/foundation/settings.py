"""When the fallbacks check values: always where an unchecked value would reach host memory, elsewhere on request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_ENVIRONMENT = "MOE_GRAPH_CHECK_DEVICES"
_check_devices = os.environ.get(_ENVIRONMENT, "0") not in ("", "0")
_on_host = {"cpu"}


def checks_devices() -> bool:
    """Are values checked on every device, whatever it costs?"""
    return _check_devices


def checks_values(tensor: Tensor) -> bool:
    """Are the values of tensors on this tensor's device checked before they index memory?

    Where the CPU's kernels run on host memory they always are: an index out of range there writes over memory of the process.
    """
    return _check_devices or tensor.device.type in _on_host


def computes_on_host(device_type: str) -> None:
    """Say that kernels of this device run on host memory. The simulated device says so of itself ("npu")."""
    _on_host.add(device_type)


@contextmanager
def check_devices(enabled: bool = True) -> Iterator[None]:
    """Inside the block the eager fallback checks count values (negative, sum other than A) on every device.

    On the CPU and the simulated device it always does. On a real device each call then synchronizes with it, so it is off unless
    MOE_GRAPH_CHECK_DEVICES=1.
    """
    global _check_devices
    before, _check_devices = _check_devices, enabled
    try:
        yield
    finally:
        _check_devices = before
