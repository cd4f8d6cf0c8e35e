"""`npu_all_gather_base_mm(x1, x2, hcom, world_size, *, bias, x1_scale, x2_scale, ...)`: (gathered x1) @ x2, and x1 gathered.

    x1 [M, K] float16, bfloat16, int8   x2 [K, N]   -> [world_size * M, N], [world_size * M, K] ([0] without gather_output)
    int8: * x2_scale [1, N] * gathered x1_scale [M, 1]

Source: the operator's page in the torch_npu documentation; GE AllGatherMatmul, AllGatherMatmulV2. Float32 inside, rounded once. Served:
gather_index 0, comm_turn 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.communication import process_group
from moe_graph.operators.communication.scaled_product import asked_of_ge, product, result_dtype
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType


def all_gather_base_mm(
    x1: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    *,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    gather_index: int = 0,
    gather_output: bool = True,
    comm_turn: int = 0,
    output_dtype: torch.dtype | None = None,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The product and the gathered x1. Raises ValueError for another world_size than the group's."""
    if gather_index or comm_turn:
        raise NotImplementedError(f"gather_index and comm_turn must be 0, got {gather_index} and {comm_turn}")
    group = process_group.of_size(hcom, world_size, "world_size")
    rows = [len(x1)] * world_size
    gathered = process_group.all_gather(x1, rows, group)
    row_scale = None if x1_scale is None else process_group.all_gather(x1_scale, rows, group)
    y = product(gathered, x2, bias, row_scale, x2_scale).to(result_dtype(x1, output_dtype, x2_scale))
    return y, gathered if gather_output else gathered.new_empty(0)


def _ge_all_gather_matmul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    *,
    group: str,
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    gather_index: int = 0,
    comm_turn: int = 0,
    rank_size: int = 0,
    is_gather_out: bool = True,
) -> tuple[Tensor, Tensor]:
    return all_gather_base_mm(
        x1.t() if is_trans_a else x1,
        x2.t() if is_trans_b else x2,
        group,
        rank_size,
        bias=bias,
        gather_index=gather_index,
        gather_output=is_gather_out,
        comm_turn=comm_turn,
    )


def _ge_all_gather_matmul_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    quant_scale: Tensor | None = None,
    *,
    group: str,
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    gather_index: int = 0,
    comm_turn: int = 0,
    rank_size: int = 0,
    block_size: int = 0,
    group_size: int = 0,
    is_gather_out: bool = True,
    is_amax_out: bool = False,
    y_dtype: GeType = 0,  # type: ignore[assignment]
    comm_mode: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    if quant_scale is not None or is_amax_out or block_size or group_size:
        raise NotImplementedError(
            "AllGatherMatmulV2: quant_scale, is_amax_out, block_size and group_size are not served"
        )
    y, gathered = all_gather_base_mm(
        x1.t() if is_trans_a else x1,
        x2.t() if is_trans_b else x2,
        group,
        rank_size,
        bias=bias,
        x1_scale=x1_scale,
        x2_scale=x2_scale,
        gather_index=gather_index,
        gather_output=is_gather_out,
        comm_turn=comm_turn,
        output_dtype=asked_of_ge(x1, y_dtype),
    )
    return y, gathered, torch.empty(0)


OPERATOR = of_torch_npu(
    "npu_all_gather_base_mm",
    all_gather_base_mm,
    ge=[
        GeKernel("AllGatherMatmul", _ge_all_gather_matmul),
        GeKernel("AllGatherMatmulV2", _ge_all_gather_matmul_v2),
    ],
)
