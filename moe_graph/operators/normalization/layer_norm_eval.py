"""`npu_layer_norm_eval(input, normalized_shape, weight=None, bias=None, eps=1e-5)`: layer normalization, without statistics.

Source: the operator's page in the torch_npu documentation. Float32 inside, rounded once. torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu


def layer_norm_eval(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """y, like the input."""
    weight, bias = (None if t is None else t.float() for t in (weight, bias))
    return torch.nn.functional.layer_norm(x.float(), list(normalized_shape), weight, bias, eps).to(x.dtype)


OPERATOR = of_torch_npu("npu_layer_norm_eval", layer_norm_eval)
