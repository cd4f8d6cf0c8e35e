"""`npu_gather_sparse_index(input, index)`: the rows of input [H, ...] that index [...] numbers, [*index.shape, ...]; and its gradient.

npu_gather_sparse_index_backward adds up the gradient of each row, in float32, rounded once. Source: the operator's page in the torch_npu
documentation. torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_gather_sparse_index")


def gather_sparse_index(x: Tensor, index: Tensor) -> Tensor:
    """The rows. Raises ValueError for a number that input does not have."""
    if bool(((index < 0) | (index >= len(x))).any()):
        _check.refuse("index", f"from 0 to {len(x) - 1}", f"from {int(index.min())} to {int(index.max())}")
    return x[index.long()]


def gather_sparse_index_backward(grad: Tensor, self_sizes: Sequence[int], index: Tensor) -> Tensor:
    """The gradient of input."""
    sums = torch.zeros(tuple(self_sizes), dtype=torch.promote_types(grad.dtype, torch.float32))
    return sums.index_add_(0, index.flatten().long(), grad.to(sums.dtype).flatten(0, index.dim() - 1)).to(grad.dtype)


OPERATOR = of_torch_npu("npu_gather_sparse_index", gather_sparse_index)
BACKWARD_OPERATOR = of_torch_npu("npu_gather_sparse_index_backward", gather_sparse_index_backward)
