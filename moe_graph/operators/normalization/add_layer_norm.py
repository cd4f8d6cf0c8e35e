"""`npu_add_layer_norm(x1, x2, gamma, beta, epsilon=1e-5, additional_output=False)`: layer normalization of x1 + x2. And its gradient.

    x1, x2 [..., *gamma.shape] floating point   gamma, beta: the dimensions that are normalized
    -> y, of x1's dtype if x2 has it, else float32; mean, rstd [..., 1] float32; x1 + x2, of y's dtype (a device leaves it undefined
       without additional_output)

npu_add_layer_norm_backward takes the gradients of y and of the sum, either may be missing, and gives those of x1, x2 (the same), gamma and
beta, float32. Float32 inside, rounded once. Sources: op-plugin's C++ and test. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.normalization import statistics

_check = Checks("npu_add_layer_norm")


def add_layer_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-5, additional_output: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, mean, rstd and the sum. Raises ValueError for shapes that do not fit."""
    _check.size(x2.shape == x1.shape, "x2", f"of x1's shape {tuple(x1.shape)}", x2)
    for name, tensor in (("gamma", gamma), ("beta", beta)):
        _check.size(tensor.shape == x1.shape[x1.dim() - gamma.dim() :], name, "of x1's last sizes", tensor)
    total = x1.float() + x2.float()
    dims = tuple(range(-gamma.dim(), 0))
    mean, rstd = statistics.moments(total, dims, epsilon)
    y = (total - mean) * rstd * gamma.float() + beta.float()
    dtype = x1.dtype if x1.dtype == x2.dtype else torch.float32
    rows = (*x1.shape[: x1.dim() - gamma.dim()], 1)
    return y.to(dtype), mean.reshape(rows), rstd.reshape(rows), total.to(dtype)


def add_layer_norm_backward(
    dy_opt: Tensor | None,
    x1: Tensor,
    x2: Tensor,
    rstd: Tensor,
    mean: Tensor,
    gamma: Tensor,
    dsum_opt: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x1, x2, gamma and beta."""
    dims = tuple(range(-gamma.dim(), 0))
    shape = (*x1.shape[: x1.dim() - gamma.dim()], *(1,) * gamma.dim())
    deviation = rstd.float().reshape(shape)
    normalized = (x1.float() + x2.float() - mean.float().reshape(shape)) * deviation
    dy = torch.zeros(x1.shape) if dy_opt is None else dy_opt.float()
    dx = statistics.gradient(dy * gamma.float(), normalized, deviation, dims)
    if dsum_opt is not None:
        dx = dx + dsum_opt.float()
    for_x1 = dx.to(x1.dtype)
    return for_x1, for_x1.clone(), (dy * normalized).sum_to_size(gamma.shape), dy.sum_to_size(gamma.shape)


OPERATOR = of_torch_npu("npu_add_layer_norm", add_layer_norm)
BACKWARD_OPERATOR = of_torch_npu("npu_add_layer_norm_backward", add_layer_norm_backward)
