"""`npu_group_norm_swish(input, num_groups, weight, bias, eps=1e-5, swish_scale=1)`: group normalization, then x * sigmoid(swish_scale * x).

    input [N, C, ...] floating point   weight, bias [C]   -> out like input; mean and rstd [N, num_groups] of weight's dtype

npu_group_norm_swish_grad gives the gradients of input, weight and bias; one that grad_input_mask leaves out is None. Float32 inside,
rounded once. Sources: the operator's page in the torch_npu documentation, op-plugin's op_plugin_functions.yaml and test.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.normalization import statistics

_check = Checks("npu_group_norm_swish")


def group_norm_swish(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float | None = 1e-5,
    swish_scale: float | None = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, mean and rstd. Raises ValueError if num_groups does not divide C."""
    values = statistics.grouped(_check, "num_groups", x, num_groups)
    mean, rstd = statistics.moments(values, (-1,), 1e-5 if eps is None else eps)
    y = statistics.affine(((values - mean) * rstd).view(x.shape), weight, bias)
    out = y * torch.sigmoid(y * (1.0 if swish_scale is None else swish_scale))
    return out.to(x.dtype), mean.squeeze(-1).to(weight.dtype), rstd.squeeze(-1).to(weight.dtype)


def group_norm_swish_grad(
    grad: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_input_mask: Sequence[bool],
    swish_scale: float | None = 1.0,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of input, weight and bias."""
    scale = 1.0 if swish_scale is None else swish_scale
    deviation = rstd.float().unsqueeze(-1)
    values = statistics.grouped(_check, "num_groups", x, num_groups)
    normalized = (values - mean.float().unsqueeze(-1)) * deviation
    by_channel = normalized.view(x.shape)
    y = statistics.affine(by_channel, weight, bias)
    gate = torch.sigmoid(y * scale)
    of_y = grad.float() * (gate + y * scale * gate * (1 - gate))
    others = (0, *range(2, x.dim()))
    through = (of_y * statistics.by_channel(weight, x)).reshape(normalized.shape)
    wanted = (
        lambda: statistics.gradient(through, normalized, deviation, (-1,)).view(x.shape).to(x.dtype),
        lambda: (of_y * by_channel).sum(others).to(weight.dtype),
        lambda: of_y.sum(others).to(bias.dtype),
    )
    first, second, third = (make() if asked else None for make, asked in zip(wanted, grad_input_mask))
    return first, second, third


OPERATOR = of_torch_npu("npu_group_norm_swish", group_norm_swish)
GRADIENT_OPERATOR = of_torch_npu("npu_group_norm_swish_grad", group_norm_swish_grad)
