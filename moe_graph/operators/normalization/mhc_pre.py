"""`npu_mhc_pre(x, phi, alpha, bias, *, gamma, ...)`: hyper-connections (mHC) before a layer; and its gradient.

    x [..., n, D] float16, bfloat16   phi [n^2 + 2n, n * D], alpha [3], bias [n^2 + 2n] float32; or [2n, ...], [2], [2n]   gamma [n, D]
    inv_rms = 1 / sqrt(mean of x^2 over n * D + norm_eps)      h_mix = (x * gamma) @ phi^T
    z = h_mix * inv_rms; of its parts pre, post and res each * alpha + bias
    h_pre = sigmoid(pre) + hc_eps      h_post = 2 * sigmoid(post)      h_res = res      h_in = the sum of h_pre * x over n
    -> h_in [..., D] like x, h_post [..., n], h_res [..., n, n] (without it one 0), inv_rms [...], h_mix, h_pre float32 (a device leaves the
       last three undefined without out_flag)

npu_mhc_pre_backward is the gradient. Float32 inside, rounded once; HF32 (inner_precise 1) is computed as float32. torchair lowers neither.
Sources: the operator's page in the torch_npu documentation, op-plugin's tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_mhc_pre")
_FLOATS = (torch.float16, torch.bfloat16)


def mhc_pre(
    x: Tensor,
    phi: Tensor,
    alpha: Tensor,
    bias: Tensor,
    *,
    gamma: Tensor | None = None,
    norm_eps: float = 1e-6,
    hc_eps: float = 1e-6,
    out_flag: int = 0,
    inner_precise: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The six results, as the module's document says. Raises ValueError on arguments that it excludes."""
    _check.dtype("x", x, _FLOATS)
    _check.rank("x", x, (3, 4), "[T, n, D] or [B, S, n, D]")
    count = x.shape[-2]
    width = 2 * count + (count**2 if alpha.numel() == 3 else 0)
    _check.value("alpha's elements", alpha.numel(), (2, 3))
    if tuple(phi.shape) != (width, x.shape[-1] * count) or bias.numel() != width:
        wanted = f"of shapes {[width, x.shape[-1] * count]} and {[width]}"
        _check.refuse("phi and bias", wanted, f"shapes {tuple(phi.shape)} and {tuple(bias.shape)}")
    wide = x.float()
    rows = wide.flatten(-2)
    inv_rms = torch.rsqrt(rows.square().mean(-1) + norm_eps)
    h_mix = (rows if gamma is None else rows * gamma.float().flatten()) @ phi.float().t()
    z = h_mix * inv_rms.unsqueeze(-1) * _by_part(alpha.float(), count) + bias.float()
    h_pre, h_post = torch.sigmoid(z[..., :count]) + hc_eps, 2 * torch.sigmoid(z[..., count : 2 * count])
    h_in = (h_pre.unsqueeze(-1) * wide).sum(-2).to(x.dtype)
    h_res = z[..., 2 * count :].unflatten(-1, (count, count)) if alpha.numel() == 3 else torch.zeros(1)
    return h_in, h_post, h_res.contiguous(), inv_rms, h_mix, h_pre


def _by_part(alpha: Tensor, count: int) -> Tensor:
    """alpha [2] or [3], once for each element of its part."""
    return alpha.repeat_interleave(torch.tensor([count, count, count**2][: alpha.numel()]))


def mhc_pre_backward(
    x: Tensor,
    phi: Tensor,
    alpha: Tensor,
    grad_h_in: Tensor,
    grad_h_post: Tensor,
    grad_h_res: Tensor,
    inv_rms: Tensor,
    h_mix: Tensor,
    h_pre: Tensor,
    h_post: Tensor,
    gamma: Tensor | None = None,
    hc_eps: float = 1e-6,
    grad_x_post: Tensor | None = None,
    inner_precise: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of x, phi, alpha, bias and gamma (None without gamma); grad_x_post is added to the first."""
    count = x.shape[-2]
    wide, of_in, inverse = x.float(), grad_h_in.float(), inv_rms.float().unsqueeze(-1)
    rows, factor = wide.flatten(-2), 1.0 if gamma is None else gamma.float().flatten()
    gate = h_pre.float() - hc_eps
    parts = [
        (of_in.unsqueeze(-2) * wide).sum(-1) * gate * (1 - gate),
        grad_h_post.float() * h_post.float() * (1 - h_post.float() / 2),
    ]
    if alpha.numel() == 3:
        parts.append(grad_h_res.float().flatten(-2))
    of_z = torch.cat(parts, -1)
    leading = tuple(range(of_z.dim() - 1))
    of_weight = of_z * _by_part(alpha.float(), count)
    of_mix = of_weight * inverse
    of_scaled = of_mix @ phi.float()
    of_x = of_scaled * factor - rows * inverse**3 * (of_weight * h_mix.float()).sum(-1, keepdim=True) / rows.shape[-1]
    of_x = of_x.view(x.shape) + h_pre.float().unsqueeze(-1) * of_in.unsqueeze(-2)
    if grad_x_post is not None:
        of_x = of_x + grad_x_post.float()
    sizes = [part.shape[-1] for part in parts]
    of_alpha = torch.stack([p.sum() for p in (of_z * h_mix.float() * inverse).split(sizes, -1)])
    of_phi = of_mix.flatten(0, -2).t() @ (rows * factor).flatten(0, -2)
    of_gamma = None if gamma is None else (of_scaled * rows).sum(leading).view(gamma.shape)
    return of_x.to(x.dtype), of_phi, of_alpha, of_z.sum(leading), of_gamma


OPERATOR = of_torch_npu("npu_mhc_pre", mhc_pre)
BACKWARD_OPERATOR = of_torch_npu("npu_mhc_pre_backward", mhc_pre_backward)
