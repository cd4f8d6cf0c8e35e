"""`npu_prefetch(self, dependency, max_size, offset=0)`: a hint to bring a tensor's first max_size bytes into the cache. No values change.

Source: the operator's page in the torch_npu documentation; GE Cmo. Here it checks its sizes and does nothing: a host has no such cache.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel


def prefetch(x: Tensor, dependency: Tensor | None, max_size: int, offset: int = 0) -> None:
    """Raises ValueError for a size that is not positive or a negative offset."""
    if max_size <= 0 or offset < 0:
        raise ValueError(f"max_size must be positive and offset not negative, got {max_size} and {offset}")


def _ge_cmo(src: Tensor, *, max_size: int, type: int = 6, offset: int = 0) -> tuple[()]:  # noqa: A002
    prefetch(src, None, max_size, offset)
    return ()


OPERATOR = of_torch_npu("npu_prefetch", prefetch, ge=[GeKernel("Cmo", _ge_cmo)])
