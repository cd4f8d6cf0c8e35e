"""Process-wide settings, each with its environment variable for the start and a function to change it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Where the eager fallback checks the values of expert_token_num_per_rank.
#   "cpu"   on CPU tensors, where reading a value costs nothing (the default)
#   "all"   on every device: each call then synchronizes with it
#   "none"  nowhere
DATA_CHECKS = ("cpu", "all", "none")
_ENVIRONMENT = "MOE_GRAPH_DATA_CHECKS"


def _valid(mode: str, where: str) -> str:
    if mode not in DATA_CHECKS:
        raise ValueError(f"{where} must be one of {', '.join(DATA_CHECKS)}, got {mode!r}")
    return mode


_data_checks = _valid(os.environ.get(_ENVIRONMENT, "cpu"), _ENVIRONMENT)


def checks_data_on(device_type: str) -> bool:
    """Does the fallback check count values on tensors of this device type?"""
    return _data_checks == "all" or (_data_checks == "cpu" and device_type == "cpu")


@contextmanager
def data_checks(mode: str) -> Iterator[None]:
    """Check count values (negative, sum other than A) on "cpu" tensors (default), on "all" devices, or on "none", inside the block."""
    global _data_checks
    before, _data_checks = _data_checks, _valid(mode, "data_checks(mode)")
    try:
        yield
    finally:
        _data_checks = before
