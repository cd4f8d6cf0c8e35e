"""`npu_one_hot(input, num_classes=-1, depth=1, on_value=1, off_value=0)`: float32 [*input.shape, depth], on_value where the class is.

input: classes of any shape; one that is not from 0 to depth - 1 has off_value alone. num_classes is the axis of depth: -1, the last one, is
what the operator's own result has.

Source: the operator's page in the torch_npu documentation, op-plugin's adapter for shape and dtype. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_one_hot")


def one_hot(x: Tensor, num_classes: int = -1, depth: int = 1, on_value: float = 1, off_value: float = 0) -> Tensor:
    """As the module's document says. Raises ValueError for another axis."""
    _check.value("num_classes", num_classes, (-1, x.dim()))
    found = x.unsqueeze(-1) == torch.arange(depth, dtype=x.dtype)
    return torch.where(found, float(on_value), float(off_value)).float()


OPERATOR = of_torch_npu("npu_one_hot", one_hot)
