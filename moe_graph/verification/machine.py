"""Versions, machine and device, as a bug report needs them. No host or user name, no path."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from moe_graph.foundation import product

_PACKAGES = ("moe_graph", "torch", "torch_npu", "numpy", "protobuf")


def describe() -> dict[str, Any]:
    """{"device": ..., "versions": ..., "machine": ...} in JSON's types, of a process that has torch_npu loaded."""
    from moe_graph import simulator

    simulated = simulator.is_active()
    versions = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    versions["cann"] = None if simulated else _cann()
    return {
        "device": {
            "simulated": simulated,
            "name": torch.npu.get_device_name(),
            "count": torch.npu.device_count(),
            "product": product.current_product().name,
        },
        "versions": versions,
        "machine": {
            "system": platform.system(),
            "release": platform.release(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
            "byte_order": sys.byteorder,
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cann() -> str | None:
    from torch_npu.npu.utils import get_cann_version  # torch_npu 2.6 and newer

    return str(get_cann_version()) or None
