"""The operators around re-routing on NPU tensors: their any-device fallbacks, on the same memory.

The simulated device has no kernels for them, nor for the backward operators that torch_npu's own autograd calls. So both the kernel and
the gradient are the fallback's; `npu_moe_re_routing` itself is the device's, in C.
"""

from __future__ import annotations

import torch

from moe_graph import operators
from moe_graph.foundation import compat
from moe_graph.operators.declaration import NAMESPACE
from moe_graph.simulator.eager import install as eager

_libraries: list[torch.library.Library] = []


def install() -> None:
    """Register them for NPU tensors, over torch_npu's. Idempotent."""
    if _libraries:
        return
    library = torch.library.Library(NAMESPACE, "IMPL")
    _libraries.append(library)
    for operator in operators.OPERATORS:
        library.impl(operator.name, eager.kernel(operator.overload), "PrivateUse1")
        if "Autograd" in operator.kernels:
            compat.impl(library, operator.name, operator.kernels["Autograd"], "AutogradPrivateUse1")
