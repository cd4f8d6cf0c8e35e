"""`npu_moe_gating_top_k_softmax(x, finished=None, k=1)`: the k experts of each token by softmax.

    x [..., E]            logits, of rank 2 or 3; N rows      finished [...]   bool: rows that choose no expert
    y [..., k]            the k largest of softmax(x), falling, dtype of x
    expert_idx [..., k]   int32, their experts; E in finished rows
    row_idx [..., k]      int32, j * N + i for choice j of row i

Computed in float32. Of equal scores the smaller number comes first; the documents do not say which.

Sources: the operator's page in the torch_npu documentation, the document of aclnnMoeGatingTopKSoftmax, torch_npu's fake implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import declare
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.moe.gating_top_k import largest

_check = Checks("npu_moe_gating_top_k_softmax")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_K = 1024


def _check_arguments(x: Tensor, finished: Tensor | None, k: int) -> None:
    _check.dtype("x", x, DTYPES)
    _check.rank("x", x, (2, 3), "[N, E] or [B, S, E]")
    _check.value("k", k, range(1, MAX_K + 1))
    _check.size(k <= x.shape[-1], "x", f"of at least k = {k} experts", x)
    if finished is not None:
        _check.dtype("finished", finished, (torch.bool,))
        _check.rank("finished", finished, (x.dim() - 1,), "x's without the last dimension")
        for size, wanted in zip(finished.shape, x.shape):
            _check.size(size == wanted, "finished", f"of shape {tuple(x.shape[:-1])}, x's without the last", finished)
        _check.device("finished", finished, "x", x)


def fake(x: Tensor, finished: Tensor | None = None, k: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes of y, expert_idx and row_idx."""
    _check_arguments(x, finished, k)
    shape = (*x.shape[:-1], k)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32), x.new_empty(shape, dtype=torch.int32)


def gating_top_k_softmax(x: Tensor, finished: Tensor | None = None, k: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """y, expert_idx and row_idx, as the module's document says. Raises ValueError on what it excludes."""
    _check_arguments(x, finished, k)
    scores = x.float().softmax(-1)
    experts = largest(scores.detach(), k)
    y = scores.gather(-1, experts).to(x.dtype)
    if finished is not None:
        experts = experts.masked_fill(finished.unsqueeze(-1), x.shape[-1])
    rows = x.shape[:-1].numel()
    row_idx = torch.arange(rows * k, dtype=torch.int32, device=x.device).view(k, rows).t().contiguous().view(y.shape)
    return y, experts.to(torch.int32), row_idx


def _ge_moe_gating_top_k_softmax(x: Tensor, finished: Tensor | None = None, *, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """GE MoeGatingTopKSoftmax: npu_moe_gating_top_k_softmax."""
    return gating_top_k_softmax(x, finished, k)


OPERATOR = declare(
    "npu_moe_gating_top_k_softmax(Tensor x, Tensor? finished=None, int k=1) -> (Tensor, Tensor, Tensor)",
    fake=fake,
    fallback=gating_top_k_softmax,
    differentiable=True,
    ge=[GeKernel("MoeGatingTopKSoftmax", _ge_moe_gating_top_k_softmax)],
)
