"""`npu_deep_norm(x, gx, beta, gamma, alpha=0.3, epsilon=1e-6)`: layer normalization of alpha * x + gx.

    x, gx [..., *gamma.shape] floating point   gamma, beta: the dimensions that are normalized
    -> mean, rstd float32, those of size 1; y like x

Sources: the document of aclnnDeepNorm (ops-nn, norm/deep_norm), op-plugin's test for the order of the results. Float32 inside, rounded
once. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_deep_norm")


def deep_norm(
    x: Tensor, gx: Tensor, beta: Tensor, gamma: Tensor, alpha: float = 0.3, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """mean, rstd and y. Raises ValueError for shapes that do not fit."""
    _check.size(gx.shape == x.shape, "gx", f"of x's shape {tuple(x.shape)}", gx)
    for name, tensor in (("gamma", gamma), ("beta", beta)):
        _check.size(tensor.shape == x.shape[x.dim() - gamma.dim() :], name, "of x's last sizes", tensor)
    dims = tuple(range(-gamma.dim(), 0))
    values = alpha * x.float() + gx.float()
    mean = values.mean(dims, keepdim=True)
    rstd = torch.rsqrt((values - mean).square().mean(dims, keepdim=True) + epsilon)
    return mean, rstd, ((values - mean) * rstd * gamma.float() + beta.float()).to(x.dtype)


OPERATOR = of_torch_npu("npu_deep_norm", deep_norm)
