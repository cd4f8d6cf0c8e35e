"""The gate of a Mixture-of-Experts layer and what counts its choices: GE's attributes over the fallbacks of `moe_graph.family`."""

from __future__ import annotations

from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.family.compute_expert_tokens import compute_expert_tokens
from moe_graph.family.gating_top_k import gating_top_k
from moe_graph.family.gating_top_k_softmax import gating_top_k_softmax


@kernel("MoeGatingTopK")
def moe_gating_top_k(
    x: Tensor,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    *,
    k: int,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE MoeGatingTopK: npu_moe_gating_top_k."""
    return gating_top_k(
        x,
        k,
        bias=bias,
        input_ids=input_ids,
        tid2eid=tid2eid,
        k_group=k_group,
        group_count=group_count,
        group_select_mode=group_select_mode,
        renorm=renorm,
        norm_type=norm_type,
        out_flag=out_flag,
        routed_scaling_factor=routed_scaling_factor,
        eps=eps,
    )


@kernel("MoeComputeExpertTokens")
def moe_compute_expert_tokens(sorted_experts: Tensor, *, num_experts: int) -> Tensor:
    """GE MoeComputeExpertTokens: npu_moe_compute_expert_tokens."""
    return compute_expert_tokens(sorted_experts, num_experts)


@kernel("MoeGatingTopKSoftmax")
def moe_gating_top_k_softmax(x: Tensor, finished: Tensor | None = None, *, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """GE MoeGatingTopKSoftmax: npu_moe_gating_top_k_softmax."""
    return gating_top_k_softmax(x, finished, k)
