"""The float status that loss scaling reads (`npu_alloc_float_status` and its kind), and the check for numbers that are not finite.

    status [8] float32, all 0: no overflow

Source: the operators' pages in the torch_npu documentation. The host keeps no record of overflow, so the status says there was none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu


def alloc_float_status(x: Tensor) -> Tensor:
    """A status."""
    return torch.zeros(8)


def float_status(x: Tensor, mode: int = 0) -> Tensor:
    """The status read or cleared."""
    return torch.zeros(8)


def foreach_non_finite_check(grads: list[Tensor]) -> bool:
    """Has any gradient a number that is not finite?"""
    return not all(bool(grad.isfinite().all()) for grad in grads)


OPERATOR = of_torch_npu("npu_alloc_float_status", alloc_float_status)
GET_OPERATOR = of_torch_npu("npu_get_float_status", float_status)
CLEAR_OPERATOR = of_torch_npu("npu_clear_float_status", float_status)
CHECK_OPERATOR = of_torch_npu("_amp_foreach_non_finite_check", foreach_non_finite_check)
