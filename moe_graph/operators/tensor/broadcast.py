"""`npu_broadcast(input, size)`: input's elements repeated to `size`, new dimensions in front; a new tensor.

Source: the operator's page in the torch_npu documentation. torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu


def broadcast(x: Tensor, size: Sequence[int]) -> Tensor:
    """The repeated elements."""
    return x.expand(*size).clone()


OPERATOR = of_torch_npu("npu_broadcast", broadcast)
