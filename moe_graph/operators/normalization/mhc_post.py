"""`npu_mhc_post(x, h_res, h_out, h_post)`: the streams of hyper-connections (mHC) behind a layer; and its gradient.

    x [B, S, n, D] or [T, n, D] float16, bfloat16   h_res [..., n, n] float32 or None   h_out [..., D] like x   h_post [..., n] float32
    y[j] = sum over i of h_res[i, j] * x[i] + h_post[j] * h_out;   without h_res the first term is x[j]

Sources: the operator's page in the torch_npu documentation; op-plugin's test, which tells that h_res is summed over its rows. Float32
inside, rounded once. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_mhc_post")


def mhc_post(x: Tensor, h_res: Tensor | None, h_out: Tensor, h_post: Tensor) -> Tensor:
    """y, of x's shape and dtype. Raises ValueError for shapes and dtypes that the document excludes."""
    _check.dtype("x", x, (torch.float16, torch.bfloat16))
    _check.rank("x", x, (3, 4), "[B, S, n, D] or [T, n, D]")
    leading, streams, width = list(x.shape[:-2]), x.shape[-2], x.shape[-1]
    expected = {
        "h_res": (h_res, [*leading, streams, streams], torch.float32),
        "h_out": (h_out, [*leading, width], x.dtype),
        "h_post": (h_post, [*leading, streams], torch.float32),
    }
    for argument, (tensor, shape, dtype) in expected.items():
        if tensor is not None:
            _check.dtype(argument, tensor, (dtype,))
            _check.size(list(tensor.shape) == shape, argument, f"of shape {shape}", tensor)
    kept = x.float() if h_res is None else h_res.transpose(-1, -2) @ x.float()
    return (kept + h_post.unsqueeze(-1) * h_out.float().unsqueeze(-2)).to(x.dtype)


def mhc_post_backward(
    grad_y: Tensor, x: Tensor, h_res: Tensor | None, h_out: Tensor, h_post: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of x, h_res (None without it), h_out and h_post."""
    grad = grad_y.float()
    of_x = grad if h_res is None else h_res.float() @ grad
    of_res = None if h_res is None else x.float() @ grad.transpose(-1, -2)
    of_out = (grad * h_post.float().unsqueeze(-1)).sum(-2)
    of_post = (grad * h_out.float().unsqueeze(-2)).sum(-1)
    return of_x.to(x.dtype), of_res, of_out.to(h_out.dtype), of_post


OPERATOR = of_torch_npu("npu_mhc_post", mhc_post)
BACKWARD_OPERATOR = of_torch_npu("npu_mhc_post_backward", mhc_post_backward)
