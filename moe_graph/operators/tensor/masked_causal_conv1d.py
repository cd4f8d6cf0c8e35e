"""`npu_masked_causal_conv1d(input, weight, *, mask=None)`: each channel convolved with what came before it, and masked.

    input [S, B, H] float16, bfloat16   weight [W, H], W = 3   mask [B, S] bool: true where the result is kept
    y[s, b, h] = sum over k of weight[k, h] * input[s - (W - 1 - k), b, h], what lies before the start being 0   y like input

Source: the operator's page in the torch_npu documentation. Float32 inside, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed

_check = Checks("npu_masked_causal_conv1d")
WINDOW = 3


def masked_causal_conv1d(x: Tensor, weight: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """As the module's document says. Raises ValueError for shapes that do not fit."""
    _check.rank("input", x, (3,), "[S, B, H]")
    _check.rank("weight", weight, (2,), "[3, H]")
    _check.size(weight.shape[0] == WINDOW, "weight", f"of W = {WINDOW} rows", weight)
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, WINDOW - 1, 0))
    y = (padded.unfold(0, WINDOW, 1) * weight.float().t()).sum(-1)
    return (y if mask is None else y.masked_fill(~mask.t().unsqueeze(-1), 0)).to(x.dtype)


OPERATOR = of_torch_npu(
    "npu_masked_causal_conv1d",
    masked_causal_conv1d,
    ge=[GeKernel("MaskedCausalConv1d", renamed(masked_causal_conv1d, input="x"))],
)
