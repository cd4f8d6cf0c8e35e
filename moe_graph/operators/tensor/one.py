"""`one_(self)`: the tensor filled with 1.

Source: the operator's page in the torch_npu documentation.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu


def one_(x: Tensor) -> Tensor:
    """x, filled with 1."""
    return x.fill_(1)


OPERATOR = of_torch_npu("one_", one_)
