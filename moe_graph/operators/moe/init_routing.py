"""`npu_moe_init_routing(x, row_idx, expert_idx, active_num)`: the rows of x by expert, each as often as it has experts.

    x [N, H]   row_idx, expert_idx [N, k] int32: the number of each place (j * N + i), and its expert
    expanded_x [min(N, active_num) * k, H]   expanded_row_idx [N * k]: where the place went   expanded_expert_idx [N * k]: sorted experts

Source: the operator's page in the torch_npu documentation, its equivalent code; GE MoeInitRouting. The sort is stable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed


def init_routing(x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int) -> tuple[Tensor, Tensor, Tensor]:
    """expanded_x, expanded_row_idx, expanded_expert_idx. Raises ValueError for shapes that do not fit and places out of range."""
    if x.dim() != 2 or row_idx.dim() != 2 or row_idx.shape != expert_idx.shape or len(row_idx) != len(x):
        raise ValueError(
            f"x must be [N, H], row_idx and expert_idx [N, k], got {list(x.shape)}, {list(row_idx.shape)} and "
            f"{list(expert_idx.shape)}"
        )
    experts, order = expert_idx.reshape(-1).sort(stable=True)
    source = row_idx.reshape(-1).long()[order]
    if source.numel() and not 0 <= int(source.min()) <= int(source.max()) < len(source):
        raise ValueError(f"row_idx must be from 0 to {len(source) - 1}, got {int(source.min())} to {int(source.max())}")
    place = torch.zeros_like(row_idx).reshape(-1)
    place[source] = torch.arange(len(source), dtype=place.dtype)
    rows = source[: min(len(x), active_num) * row_idx.shape[1]] % max(len(x), 1)
    return x[rows], place, experts


OPERATOR = of_torch_npu("npu_moe_init_routing", init_routing, ge=[GeKernel("MoeInitRouting", renamed(init_routing))])
