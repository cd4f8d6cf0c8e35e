"""The forms of an attention that torchair puts into a captured graph: a workspace, and results written to given tensors.

torch_npu has no fake implementation of either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.attention import captured_forms
from moe_graph.operators.declaration import qualname_of


def is_workspace(function: torch._ops.OpOverload) -> bool:
    """Does this say how much memory the kernel works in? How much that is only the product knows: it is not in a plan."""
    return qualname_of(function) in captured_forms.WORKSPACES


def as_called(
    function: torch._ops.OpOverload, kwargs: dict[str, Any]
) -> tuple[torch._ops.OpOverload, dict[str, Any], tuple[Tensor, ...] | None]:
    """The operator that the model has called, its keyword arguments, and the given tensors that are its results, if they are given."""
    if qualname_of(function) not in captured_forms.OUTS:
        return function, kwargs, None
    own = {name: value for name, value in kwargs.items() if name not in ("workspace", "out")}
    return function._overloadpacket.default, own, tuple(kwargs["out"])
