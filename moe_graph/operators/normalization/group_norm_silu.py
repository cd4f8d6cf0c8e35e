"""`npu_group_norm_silu(input, weight, bias, group, eps=1e-5)`: group normalization, then silu.

    input [N, C, ...] floating point   weight, bias [C] or None   -> y like input
    mean and rstd [N, group], of weight's dtype if both are given, else input's

Source: the document of aclnnGroupNormSilu (ops-nn, norm/group_norm_silu). Statistics and silu are float32, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.normalization import statistics

_check = Checks("npu_group_norm_silu")


def group_norm_silu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, group: int, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and rstd. Raises ValueError if `group` does not divide C."""
    values = statistics.grouped(_check, "group", x, group)
    mean, rstd = statistics.moments(values, (-1,), eps)
    y = statistics.affine(((values - mean) * rstd).view(x.shape), weight, bias)
    dtype = x.dtype if weight is None or bias is None else weight.dtype
    return torch.nn.functional.silu(y).to(x.dtype), mean.squeeze(-1).to(dtype), rstd.squeeze(-1).to(dtype)


def _ge_group_norm_silu(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, *, num_groups: int, eps: float = 0.0001
) -> tuple[Tensor, Tensor, Tensor]:
    """GE GroupNormSilu."""
    return group_norm_silu(x, gamma, beta, num_groups, eps)


OPERATOR = of_torch_npu("npu_group_norm_silu", group_norm_silu, ge=[GeKernel("GroupNormSilu", _ge_group_norm_silu)])
