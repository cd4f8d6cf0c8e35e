"""`npu_mhc_sinkhorn(x, eps, num_iters, out_flag)`: square matrices to doubly stochastic ones, for hyper-connections (mHC).

    x [B, S, n, n] or [T, n, n] float32, n 4, 6 or 8 -> y like x; num_iters 1 to 100
    first       softmax along the rows + eps, then each column / (its sum + eps)
    again       each row / (its sum + eps), then each column / (its sum + eps), num_iters - 1 times

Source: the operator's page in the torch_npu documentation. torchair has no converter. Not served: out_flag 1, whose intermediate results
lie as the cores of a device divide the work, and with them npu_mhc_sinkhorn_backward, which takes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_mhc_sinkhorn")


def mhc_sinkhorn(x: Tensor, *, eps: float = 1e-6, num_iters: int = 20, out_flag: int = 0) -> tuple[Tensor, None, None]:
    """y, and None in place of the intermediate results. Raises ValueError for what the document excludes."""
    _check.dtype("x", x, (torch.float32,))
    _check.rank("x", x, (3, 4), "[B, S, n, n] or [T, n, n]")
    _check.size(x.shape[-1] == x.shape[-2] and x.shape[-1] in (4, 6, 8), "x", "of n = 4, 6 or 8", x)
    _check.value("num_iters", num_iters, range(1, 101))
    if out_flag:
        raise NotImplementedError("npu_mhc_sinkhorn: out_flag must be 0, the intermediate results are not served")
    y = torch.softmax(x, -1) + eps
    y = y / (y.sum(-2, keepdim=True) + eps)
    for _ in range(num_iters - 1):
        y = y / (y.sum(-1, keepdim=True) + eps)
        y = y / (y.sum(-2, keepdim=True) + eps)
    return y, None, None


OPERATOR = of_torch_npu("npu_mhc_sinkhorn", mhc_sinkhorn)
