"""`npu_rms_norm(self, gamma, epsilon=1e-06)`: y = x / sqrt(mean(x^2) + epsilon) * gamma, and rstd, that root's inverse. And its gradient.

    x [..., *gamma.shape] float16, bfloat16, float32   gamma: the dimensions that are normalized   y like x   rstd float32, those of size 1

Source: the operator's page in the torch_npu documentation. Accumulation is float32, rounded once.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """y and rstd, as the module's document says."""
    wide = x.float()
    mean = wide.square().mean(tuple(range(-gamma.dim(), 0)), keepdim=True) + epsilon
    rstd = mean.double().rsqrt().float()  # the root in float32 first would round twice
    return (wide * rstd * gamma.float()).to(x.dtype), rstd


def rms_norm_backward(grad: Tensor, x: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and, float32, of gamma."""
    dims = tuple(range(-gamma.dim(), 0))
    wide, rstd = x.float(), rstd.float()
    through = grad.float() * gamma.float()
    mean = (through * wide).mean(dims, keepdim=True)
    for_x = through * rstd - wide * rstd**3 * mean
    return for_x.to(x.dtype), (grad.float() * wide * rstd).sum_to_size(gamma.shape)


def _ge_rms_norm_grad(dy: Tensor, x: Tensor, rstd: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """GE RmsNormGrad: npu_rms_norm_backward."""
    return rms_norm_backward(dy, x, gamma, rstd)


OPERATOR = of_torch_npu("npu_rms_norm", rms_norm, ge=[GeKernel("RmsNorm", renamed(rms_norm))])
BACKWARD_OPERATOR = of_torch_npu(
    "npu_rms_norm_backward", rms_norm_backward, ge=[GeKernel("RmsNormGrad", _ge_rms_norm_grad)]
)
