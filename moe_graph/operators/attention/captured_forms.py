"""What torch_npu turns an attention into while a graph is captured: its workspace first, then the form that writes to given tensors.

    _..._get_max_workspace  the memory that the kernel works in: the reference needs none, so [0] of uint8
    ....out                 the operator's results, written to its `out` tensors; one for which there is no result stays as it is:
                            softmax_lse that was not asked for, softmax_out of npu_fusion_attention_v3, which is captured without dropout

Source: torch_npu's handlers of attention in captured graphs (npu/_npugraph_handlers), which call these three in this order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.attention.fused_infer_attention_score import fused_infer_attention_score
from moe_graph.operators.attention.fused_infer_attention_score_v2 import fused_infer_attention_score_v2
from moe_graph.operators.attention.fusion_attention_v3 import fusion_attention_grad_v3, fusion_attention_v3
from moe_graph.operators.declaration import of_torch_npu


def workspace(*args: Any, **options: Any) -> Tensor:
    """No memory: uint8 [0]."""
    return torch.empty(0, dtype=torch.uint8)


def _into(function: Callable[..., tuple[Tensor | None, ...]], *names: str) -> Callable[..., tuple[Tensor, ...]]:
    """The form that writes to `out`, tensors with these names."""
    parameters = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    def call(
        *args: Any,
        out: Sequence[Tensor],
        workspace: Tensor | None = None,  # noqa: ARG001  the kernel's, of which the reference needs none; in places the last of args
        **options: Any,
    ) -> tuple[Tensor, ...]:
        given = {**dict(zip(parameters, args)), **options}
        if given.get("keep_prob", 1.0) != 1.0:
            # torch_npu captures packed sequences alone in this form, and those without dropout.
            raise NotImplementedError(f"{function.__name__}.out: keep_prob must be 1, got {given['keep_prob']}")
        for name, made, target in zip(names, function(**given), out):
            if made is None or not made.numel():
                continue
            if made.shape != target.shape:
                raise ValueError(f"{name} must have shape {list(made.shape)}, got {list(target.shape)}")
            target.copy_(made)
        return tuple(out)

    call.__module__ = __name__
    return call


_INFERRED = ("attention_out", "softmax_lse")
_TRAINED = ("attention_score", "softmax_max", "softmax_sum", "softmax_out", "seed", "offset")
_GRADIENTS = ("dq", "dk", "dv", "dpse", "dsink")

FIRST_OUT_OPERATOR = of_torch_npu("npu_fused_infer_attention_score.out", _into(fused_infer_attention_score, *_INFERRED))
SECOND_OUT_OPERATOR = of_torch_npu(
    "npu_fused_infer_attention_score_v2.out", _into(fused_infer_attention_score_v2, *_INFERRED)
)
THIRD_OUT_OPERATOR = of_torch_npu("npu_fusion_attention_v3.out", _into(fusion_attention_v3, *_TRAINED))
GRADIENT_OUT_OPERATOR = of_torch_npu("npu_fusion_attention_grad_v3.out", _into(fusion_attention_grad_v3, *_GRADIENTS))
FIRST_WORKSPACE_OPERATOR = of_torch_npu("_npu_fused_infer_attention_score_get_max_workspace", workspace)
SECOND_WORKSPACE_OPERATOR = of_torch_npu("_npu_fused_infer_attention_score_v2_get_max_workspace", workspace)
THIRD_WORKSPACE_OPERATOR = of_torch_npu("_npu_fusion_attention_v3_get_max_workspace", workspace)
GRADIENT_WORKSPACE_OPERATOR = of_torch_npu("_npu_fusion_attention_grad_v3_get_max_workspace", workspace)

OUTS = frozenset(
    one.qualname for one in (FIRST_OUT_OPERATOR, SECOND_OUT_OPERATOR, THIRD_OUT_OPERATOR, GRADIENT_OUT_OPERATOR)
)
WORKSPACES = frozenset(
    one.qualname
    for one in (
        FIRST_WORKSPACE_OPERATOR,
        SECOND_WORKSPACE_OPERATOR,
        THIRD_WORKSPACE_OPERATOR,
        GRADIENT_WORKSPACE_OPERATOR,
    )
)
