"""The process-wide settings: does the fallback check count values on devices, too; what is told of torchair's lowering."""

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


# ---- what torchair lowers to other numbers than PyTorch's (moe_graph.converters.known) ----

_NUMBERS = "MOE_GRAPH_TORCHAIR_NUMBERS"
_HOW = ("warn", "error", "silent")
_numbers = os.environ.get(_NUMBERS, "warn")


def torchair_numbers_are() -> str:
    """What is done at lowering about a call that torchair lowers to other numbers: "warn", "error" or "silent".

    Raises ValueError if the environment says anything else.
    """
    return _one_of(_numbers, _NUMBERS)


@contextmanager
def torchair_numbers(how: str) -> Iterator[None]:
    """Inside the block a call that torchair is known to lower to other numbers than PyTorch's is told so: "warn" (a TorchairWarning, once
    for an operator and line; the default), "error" (a TorchairError), or "silent". MOE_GRAPH_TORCHAIR_NUMBERS says it for a process.

    Raises ValueError for anything else.
    """
    global _numbers
    before, _numbers = _numbers, _one_of(how, "torchair_numbers")
    try:
        yield
    finally:
        _numbers = before


def _one_of(how: str, name: str) -> str:
    if how not in _HOW:
        raise ValueError(f"{name} must be one of {', '.join(_HOW)}, got {how!r}")
    return how
