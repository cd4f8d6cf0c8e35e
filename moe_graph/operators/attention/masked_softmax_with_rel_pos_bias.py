"""`npu_masked_softmax_with_rel_pos_bias(x, atten_mask, relative_pos_bias, scale_value=1.0, inner_precision_mode=0)`.

    x [B, W, N, S1, S2] or [B * W, N, S1, S2]   atten_mask [W, S1, S2], with sizes 1 for B and N, or None
    relative_pos_bias [N, S1, S2], with sizes 1 before
    -> softmax(scale_value * x + atten_mask + relative_pos_bias) over the last dimension, like x

Source: the document of aclnnMaskedSoftmaxWithRelPosBias (ops-nn, norm). Float32 inside, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel

_check = Checks("npu_masked_softmax_with_rel_pos_bias")


def masked_softmax_with_rel_pos_bias(
    x: Tensor,
    atten_mask: Tensor | None,
    relative_pos_bias: Tensor,
    scale_value: float = 1.0,
    inner_precision_mode: int = 0,
) -> Tensor:
    """As the module's document says. Raises ValueError for shapes that do not fit."""
    _check.rank("x", x, (4, 5), "[B, W, N, S1, S2] or [B * W, N, S1, S2]")
    _check.value("inner_precision_mode", inner_precision_mode, (0,))
    tail = x.shape[-3:]
    values = x.float() * scale_value + relative_pos_bias.float().reshape(tail)
    if atten_mask is not None:
        windows = atten_mask.numel() // (tail[1] * tail[2])
        mask = atten_mask.float().reshape(windows, 1, tail[1], tail[2])
        values = (values.reshape(-1, windows, *tail) + mask).reshape(x.shape)
    return torch.softmax(values, -1).to(x.dtype)


def _ge_masked_softmax_with_rel_pos_bias(
    x: Tensor,
    atten_mask: Tensor | None = None,
    relative_pos_bias: Tensor | None = None,
    *,
    scale_value: float = 1.0,
    inner_precision_mode: int = 0,
) -> Tensor:
    """GE MaskedSoftmaxWithRelPosBias. The last input has a default because the one before it has; it is required."""
    if relative_pos_bias is None:
        raise ValueError("MaskedSoftmaxWithRelPosBias: relative_pos_bias must be fed")
    return masked_softmax_with_rel_pos_bias(x, atten_mask, relative_pos_bias, scale_value, inner_precision_mode)


OPERATOR = of_torch_npu(
    "npu_masked_softmax_with_rel_pos_bias",
    masked_softmax_with_rel_pos_bias,
    ge=[GeKernel("MaskedSoftmaxWithRelPosBias", _ge_masked_softmax_with_rel_pos_bias)],
)
