"""What torch_npu turns an attention into while a graph is captured: its workspace first, then the form that writes to given tensors.

    _..._get_max_workspace  the memory that the kernel works in: the reference needs none, so [0] of uint8
    ....out                 the operator's results, written to its `out` tensors; an empty softmax_lse stays as it is

Source: torch_npu's handlers of attention in captured graphs (npu/_npugraph_handlers), which call these three in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.attention.fused_infer_attention_score import fused_infer_attention_score
from moe_graph.operators.attention.fused_infer_attention_score_v2 import fused_infer_attention_score_v2
from moe_graph.operators.declaration import of_torch_npu


def workspace(*args: Any, **options: Any) -> Tensor:
    """No memory: uint8 [0]."""
    return torch.empty(0, dtype=torch.uint8)


def _into(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def call(
        *args: Any,
        out: Sequence[Tensor],
        workspace: Tensor | None = None,  # noqa: ARG001  the kernel's, of which the reference needs none
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        attention_out, softmax_lse = out
        attention, lse = function(*args, **options)
        if attention.shape != attention_out.shape:
            raise ValueError(f"attention_out must have shape {list(attention.shape)}, got {list(attention_out.shape)}")
        attention_out.copy_(attention)
        if lse.numel():
            softmax_lse.copy_(lse)
        return attention_out, softmax_lse

    call.__module__ = __name__
    return call


FIRST_OUT_OPERATOR = of_torch_npu("npu_fused_infer_attention_score.out", _into(fused_infer_attention_score))
SECOND_OUT_OPERATOR = of_torch_npu("npu_fused_infer_attention_score_v2.out", _into(fused_infer_attention_score_v2))
FIRST_WORKSPACE_OPERATOR = of_torch_npu("_npu_fused_infer_attention_score_get_max_workspace", workspace)
SECOND_WORKSPACE_OPERATOR = of_torch_npu("_npu_fused_infer_attention_score_v2_get_max_workspace", workspace)
THIRD_WORKSPACE_OPERATOR = of_torch_npu("_npu_fusion_attention_v3_get_max_workspace", workspace)
GRADIENT_WORKSPACE_OPERATOR = of_torch_npu("_npu_fusion_attention_grad_v3_get_max_workspace", workspace)

OUTS = frozenset(one.qualname for one in (FIRST_OUT_OPERATOR, SECOND_OUT_OPERATOR))
WORKSPACES = frozenset(
    one.qualname
    for one in (
        FIRST_WORKSPACE_OPERATOR,
        SECOND_WORKSPACE_OPERATOR,
        THIRD_WORKSPACE_OPERATOR,
        GRADIENT_WORKSPACE_OPERATOR,
    )
)
