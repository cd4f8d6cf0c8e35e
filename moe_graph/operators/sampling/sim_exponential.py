"""`npu_sim_exponential_(self, lambd=1, *, generator=None)`: the tensor filled with numbers of the exponential distribution.

    self float16, bfloat16, float32   lambd > 0, the distribution's rate; 0 everywhere if it is infinite

The numbers are other ones than the device's, like all random numbers of the simulated one. Sources: the operator's page in the torch_npu
documentation, op-plugin's C++. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_sim_exponential_")


def sim_exponential_(x: Tensor, lambd: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """x. Raises ValueError for a rate that is not positive."""
    _check.dtype("self", x, (torch.float16, torch.bfloat16, torch.float32))
    if not lambd > 0:
        raise ValueError(f"npu_sim_exponential_ expects lambd > 0.0, but found lambd={lambd}")
    return x.zero_() if lambd == torch.inf else x.exponential_(lambd, generator=generator)


OPERATOR = of_torch_npu("npu_sim_exponential_", sim_exponential_)
