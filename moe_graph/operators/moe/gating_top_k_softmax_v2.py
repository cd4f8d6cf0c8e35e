"""`npu_moe_gating_top_k_softmax_v2(x, *, k=1, finished=None, renorm=0, output_softmax=False)`: the k experts of each token by softmax.

    x [..., E] logits, of rank 2 or 3   finished [...] bool: rows that choose no expert, whose expert_idx is E
    renorm 0   y [..., k] the k largest of softmax(x); with output_softmax softmax(x) float32 is the third result
    renorm 1   y [..., k] the softmax of the k largest logits
    -> y of x's dtype, expert_idx int32, softmax float32: of x's shape, or of no elements

Sources: the document of aclnnMoeGatingTopKSoftmaxV2 (ops-transformer), op-plugin's test. Float32 inside, rounded once. Of equal scores the
smaller number comes first. torchair's converter hands the arguments to a function of GE that does not take them: no graph has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.moe.gating_top_k import largest

_check = Checks("npu_moe_gating_top_k_softmax_v2")


def gating_top_k_softmax_v2(
    x: Tensor,
    *,
    k: int = 1,
    finished: Tensor | None = None,
    renorm: int | None = 0,
    output_softmax: bool | None = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, expert_idx and softmax. Raises ValueError for arguments that the document excludes."""
    _check.rank("x", x, (2, 3), "[N, E] or [B, S, E]")
    _check.value("renorm", renorm, (None, 0, 1))
    _check.value("k", k, range(1, x.shape[-1] + 1))
    logits = x.float()
    scores = logits if renorm else logits.softmax(-1)
    experts = largest(scores, k)
    y = scores.gather(-1, experts)
    y = (y.softmax(-1) if renorm else y).to(x.dtype)
    if finished is not None:
        experts = experts.masked_fill(finished.reshape(x.shape[:-1]).unsqueeze(-1), x.shape[-1])
    return y, experts.to(torch.int32), scores if output_softmax and not renorm else torch.empty(0)


OPERATOR = of_torch_npu("npu_moe_gating_top_k_softmax_v2", gating_top_k_softmax_v2)
