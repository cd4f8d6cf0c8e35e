"""The one process-wide setting of the fallback: does it check count values on devices, too?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_ENVIRONMENT = "MOE_GRAPH_CHECK_DEVICES"
_check_devices = os.environ.get(_ENVIRONMENT, "0") not in ("", "0")


def checks_devices() -> bool:
    """Does the fallback check count values on tensors that are not on the CPU?"""
    return _check_devices


@contextmanager
def check_devices(enabled: bool = True) -> Iterator[None]:
    """Inside the block the eager fallback checks count values (negative, sum other than A) on every device.

    On the CPU it always does. On a device each call then synchronizes with it, so it is off unless MOE_GRAPH_CHECK_DEVICES=1.
    """
    global _check_devices
    before, _check_devices = _check_devices, enabled
    try:
        yield
    finally:
        _check_devices = before
