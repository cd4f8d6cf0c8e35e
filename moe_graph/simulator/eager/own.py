"""Operators of a plugin's or a program's own on NPU tensors: `moe_graph.plugins.npu_kernel`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from moe_graph.plugins import npu_kernels
from moe_graph.simulator.eager import install as eager

_libraries: dict[str, torch.library.Library] = {}


def install() -> None:
    """Serve those that are declared, and those to come. Idempotent."""
    if not _libraries:
        npu_kernels.serve_with(_serve)


def _serve(name: str, function: Callable) -> None:
    namespace, _, rest = name.partition("::")
    if namespace not in _libraries:
        _libraries[namespace] = torch.library.Library(namespace, "IMPL")
    _libraries[namespace].m.impl(rest, "PrivateUse1", eager.kernel_of(name, function))
