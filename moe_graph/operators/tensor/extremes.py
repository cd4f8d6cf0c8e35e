"""`npu_max(input, dim, keepdim=False)` and `npu_min`: the largest or least elements along dim, and int32 indices; and their gradients.

Of equal ones the first is taken. Sources: the operators' pages in the torch_npu documentation, op-plugin's adapter for the indices' dtype.
torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu


def largest(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """values and indices of the largest."""
    values, indices = torch.max(x, dim, keepdim)
    return values, indices.int()


def least(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """values and indices of the least."""
    values, indices = torch.min(x, dim, keepdim)
    return values, indices.int()


def gradient(grad: Tensor, dim: int, indices: Tensor, sizes: Sequence[int], keepdim: bool) -> Tensor:
    """The gradient of input, of these sizes: the result's where it was taken from."""
    if not keepdim and sizes:
        grad, indices = grad.unsqueeze(dim), indices.unsqueeze(dim)
    return grad.new_zeros(tuple(sizes)).scatter_(dim, indices.long(), grad)


MAX_OPERATOR = of_torch_npu("npu_max.dim", largest)
MAX_BACKWARD_OPERATOR = of_torch_npu("npu_max_backward", gradient)
MIN_OPERATOR = of_torch_npu("npu_min.dim", least)
MIN_BACKWARD_OPERATOR = of_torch_npu("npu_min_backward", gradient)
