"""`npu_deep_norm(x, gx, beta, gamma, alpha=0.3, epsilon=1e-6)`: layer normalization of alpha * x + gx. And its gradient.

    x, gx [..., *gamma.shape] floating point   gamma, beta: the dimensions that are normalized
    -> mean, rstd float32, those of size 1; y like x

npu_deep_norm_backward gives the gradients of x and gx, like x, and of beta and gamma, float32.

Sources: the documents of aclnnDeepNorm and aclnnDeepNormGrad (ops-nn, norm/deep_norm), op-plugin's test for the order of the results.
Float32 inside, rounded once. torchair has no converter.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.normalization import statistics

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
    mean, rstd = statistics.moments(values, dims, epsilon)
    return mean, rstd, ((values - mean) * rstd * gamma.float() + beta.float()).to(x.dtype)


def deep_norm_backward(
    dy: Tensor, x: Tensor, gx: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor, alpha: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, gx, beta and gamma."""
    dims = tuple(range(-gamma.dim(), 0))
    grad, deviation = dy.float(), rstd.float()
    normalized = (alpha * x.float() + gx.float() - mean.float()) * deviation
    of_sum = statistics.gradient(grad * gamma.float(), normalized, deviation, dims)
    of_gamma = (grad * normalized).sum_to_size(gamma.shape)
    return (alpha * of_sum).to(x.dtype), of_sum.to(gx.dtype), grad.sum_to_size(gamma.shape), of_gamma


OPERATOR = of_torch_npu("npu_deep_norm", deep_norm)
BACKWARD_OPERATOR = of_torch_npu("npu_deep_norm_backward", deep_norm_backward)
