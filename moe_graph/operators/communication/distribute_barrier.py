"""`_npu_distribute_barrier(x_ref, group, world_size, *, time_out=None, elastic_info=None)`: every rank of the group waits for all others.

    x_ref  any tensor: it orders the barrier among other operators and comes back as it is

Source: the document of aclnnDistributeBarrier (ops-transformer). Not served: time_out and elastic_info, of ranks that are missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.communication import process_group
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel


def distribute_barrier(
    x_ref: Tensor, group: str, world_size: int, *, time_out: Tensor | None = None, elastic_info: Tensor | None = None
) -> Tensor:
    """x_ref, when all ranks are here. Raises ValueError for another world_size than the group's."""
    if time_out is not None or elastic_info is not None:
        raise NotImplementedError(
            "_npu_distribute_barrier: time_out and elastic_info must be None, they are not served"
        )
    found = process_group.of_size(group, world_size, "world_size")
    process_group.all_reduce(torch.zeros(1), "sum", found)
    return x_ref


def _ge_distribute_barrier(
    x_ref: Tensor, time_out: Tensor | None = None, elastic_info: Tensor | None = None, *, group: str, world_size: int
) -> Tensor:
    """GE DistributeBarrier."""
    return distribute_barrier(x_ref, group, world_size, time_out=time_out, elastic_info=elastic_info)


OPERATOR = of_torch_npu(
    "_npu_distribute_barrier", distribute_barrier, ge=[GeKernel("DistributeBarrier", _ge_distribute_barrier)]
)
