"""Eager PyTorch on the CPU, as the reference.

Products of half types are computed in float32 and rounded once: where the CPU has no fast kernel for them, PyTorch's own takes a quarter
of an hour for the largest case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from moe_graph.operators.rounding import HALF

_PRODUCTS = frozenset(
    {"addmm", "mm", "bmm", "addbmm", "baddbmm", "convolution", "_convolution", "linear", "matmul", "addmv", "mv"}
)


class _WideProducts(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        half = {leaf.dtype for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dtype in HALF}
        if len(half) != 1 or func._schema.name.removeprefix("aten::") not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        (dtype,) = half
        wide = tree_map(
            lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == dtype else leaf,
            (args, kwargs or {}),
        )
        return func(*wide[0], **wide[1]).to(dtype)


def eager(operator: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the operator returns in eager PyTorch. Raises what PyTorch raises."""
    with _WideProducts():
        return operator(*args, **kwargs)
