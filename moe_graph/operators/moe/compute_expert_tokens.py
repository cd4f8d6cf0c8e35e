"""`npu_moe_compute_expert_tokens(sorted_expert_for_source_row, num_expert)`: the end of each expert's rows in a sorted list.

    sorted_expert_for_source_row [A] int32, non-decreasing, from 0 to num_expert - 1
    result [num_expert] int32        how many rows belong to expert 0 up to i: the running sum of the experts' tokens

Sources: the operator's page in the torch_npu documentation, torch_npu's fake implementation. Without rows the result is zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import declare
from moe_graph.operators.ge import GeKernel, renamed

_check = Checks("npu_moe_compute_expert_tokens")
MAX_EXPERTS = 2048


def _check_arguments(sorted_expert_for_source_row: Tensor, num_expert: int) -> None:
    _check.dtype("sorted_expert_for_source_row", sorted_expert_for_source_row, (torch.int32,))
    _check.rank("sorted_expert_for_source_row", sorted_expert_for_source_row, (1,), "[A]")
    _check.value("num_expert", num_expert, range(1, MAX_EXPERTS + 1))


def fake(sorted_expert_for_source_row: Tensor, num_expert: int) -> Tensor:
    """Shape and dtype of the result."""
    _check_arguments(sorted_expert_for_source_row, num_expert)
    return sorted_expert_for_source_row.new_empty((num_expert,))


def compute_expert_tokens(sorted_expert_for_source_row: Tensor, num_expert: int) -> Tensor:
    """The running sum of the experts' tokens. Raises ValueError on what the module's document excludes."""
    _check_arguments(sorted_expert_for_source_row, num_expert)
    numbers = torch.arange(num_expert, dtype=torch.int32, device=sorted_expert_for_source_row.device)
    return torch.searchsorted(sorted_expert_for_source_row, numbers, right=True, out_int32=True)


OPERATOR = declare(
    "npu_moe_compute_expert_tokens(Tensor sorted_expert_for_source_row, int num_expert) -> Tensor",
    fake=fake,
    fallback=compute_expert_tokens,
    ge=[
        GeKernel(
            "MoeComputeExpertTokens",
            renamed(compute_expert_tokens, sorted_experts="sorted_expert_for_source_row", num_experts="num_expert"),
        )
    ],
)
