"""`batch_norm_reduce(input, eps)`: the sums and the sums of squares over all dimensions but the second, for synchronized batch norms.

    input [N, C, ...] float16, bfloat16, float32   eps is reserved   -> sum, square_sum [C] float32

Source: the operator's page in the torch_npu documentation, op-plugin's C++ (ranks). Float32. torchair's converter refuses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("batch_norm_reduce")


def batch_norm_reduce(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001  reserved
    """sum and square_sum. Raises ValueError for a tensor without a second dimension."""
    _check.dtype("input", x, (torch.float16, torch.bfloat16, torch.float32))
    if x.dim() < 2:
        _check.refuse("input", "of shape [N, C, ...]", f"shape {tuple(x.shape)}")
    wide, others = x.float(), (0, *range(2, x.dim()))
    return wide.sum(others), wide.square().sum(others)


OPERATOR = of_torch_npu("batch_norm_reduce", batch_norm_reduce)
