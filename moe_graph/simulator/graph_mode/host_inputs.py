"""Inputs on the host of a graph that torchair captures stay alive as long as what torchair knows of them.

torchair's modes that capture copy the inputs of each call into those of the capture, by bare pointers. It replaces NPU inputs by buffers of
its own, but not those on the host, which it lets go after the capture: each replay then writes into memory that is freed, which damages the
process. `get_tensor_metadata` is where it takes the pointer.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch import Tensor

_MODULES = (
    "torch_npu.dynamo.npugraph_ex._acl_concrete_graph.acl_graph",
    "npugraph_ex._acl_concrete_graph.acl_graph",
    "torch_npu.dynamo.torchair._acl_concrete_graph.acl_graph",
    "torchair._acl_concrete_graph.acl_graph",
)


def install() -> None:
    """Look for torchair's modules when a capture begins: before it takes the pointers, and after it was imported. Idempotent."""
    import torch_npu

    graph: Any = getattr(torch_npu.npu, "NPUGraph", None)
    if graph is None or hasattr(graph.capture_begin, "_original"):
        return
    original = graph.capture_begin

    @functools.wraps(original)
    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        _keep_in_modules()
        return original(self, *args, **kwargs)

    capture_begin._original = original  # type: ignore[attr-defined]
    graph.capture_begin = capture_begin


def _keep_in_modules() -> None:
    for name in _MODULES:
        module: Any = sys.modules.get(name)
        if module is not None and not hasattr(module.get_tensor_metadata, "_original"):
            module.get_tensor_metadata = _keeping(module.get_tensor_metadata)


def _keeping(original: Any) -> Any:
    @functools.wraps(original)
    def get_tensor_metadata(x: Any) -> Any:
        metadata = original(x)
        if isinstance(x, Tensor) and x.is_cpu:
            metadata.keeps = x
        return metadata

    get_tensor_metadata._original = original  # type: ignore[attr-defined]
    return get_tensor_metadata
