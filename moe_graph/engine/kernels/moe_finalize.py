"""The end of a Mixture-of-Experts layer: GE's names and attributes over the fallback of `moe_graph.family`."""

from __future__ import annotations

from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.family.finalize_routing import finalize_routing


@kernel("MoeFinalizeRouting")
def moe_finalize_routing(
    expanded_x: Tensor,
    x1: Tensor,
    x2: Tensor | None = None,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    expanded_row_idx: Tensor | None = None,
    expanded_expert_idx: Tensor | None = None,
) -> Tensor:
    """GE MoeFinalizeRouting: npu_moe_finalize_routing with a skip, bias and scales, drop_pad_mode 0."""
    return finalize_routing(expanded_x, x1, x2, bias, scales, expanded_row_idx, expanded_expert_idx)


@kernel("MoeFinalizeRoutingV2")
def moe_finalize_routing_v2(
    expanded_x: Tensor,
    expanded_row_idx: Tensor,
    x1: Tensor | None = None,
    x2: Tensor | None = None,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    expert_idx: Tensor | None = None,
    *,
    drop_pad_mode: int = 0,
    k: int = 1,
) -> Tensor:
    """GE MoeFinalizeRoutingV2: npu_moe_finalize_routing."""
    return finalize_routing(expanded_x, x1, x2, bias, scales, expanded_row_idx, expert_idx, drop_pad_mode, k)
