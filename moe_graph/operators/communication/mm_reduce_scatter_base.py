"""`npu_mm_reduce_scatter_base(input, x2, hcom, world_size, *, ...)`: this rank's rows of the ranks' products.

    input [M, K] float16, bfloat16, int8   x2 [K, N]   -> [M / world_size, N]: of the sum over the ranks of input @ x2 + bias
    int8: each rank's product * x2_scale [1, N] * x1_scale [M, 1]

Source: the operator's page in the torch_npu documentation; GE MatmulReduceScatter, MatmulReduceScatterV2. Products and their sum are
float32, rounded once. Served: reduce_op sum, comm_turn 0.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from moe_graph.operators.communication import process_group
from moe_graph.operators.communication.scaled_product import asked_of_ge, product, result_dtype
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType


def mm_reduce_scatter_base(
    x1: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    *,
    reduce_op: str = "sum",
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    comm_turn: int = 0,
    output_dtype: torch.dtype | None = None,
    comm_mode: str | None = None,
) -> Tensor:
    """As the module's document says. Raises ValueError for rows that the ranks do not share evenly."""
    if reduce_op != "sum" or comm_turn:
        raise NotImplementedError(f"reduce_op must be sum and comm_turn 0, got {reduce_op!r} and {comm_turn}")
    group = process_group.named(hcom)
    size = dist.get_world_size(group)
    if size != world_size or len(x1) % size:
        raise ValueError(f"world_size must be {size} and divide the {len(x1)} rows, got {world_size}")
    partial = product(x1, x2, bias, x1_scale, x2_scale)
    total = process_group.reduce_scatter(partial, "sum", [len(x1) // size] * size, group)
    return total.to(result_dtype(x1, output_dtype, x2_scale))


def _ge_matmul_reduce_scatter(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    *,
    group: str,
    reduce_op: str = "sum",
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    comm_turn: int = 0,
    rank_size: int = 0,
) -> Tensor:
    left, right = x1.t() if is_trans_a else x1, x2.t() if is_trans_b else x2
    return mm_reduce_scatter_base(left, right, group, rank_size, reduce_op=reduce_op, bias=bias, comm_turn=comm_turn)


def _ge_matmul_reduce_scatter_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    quant_scale: Tensor | None = None,
    *,
    group: str,
    reduce_op: str = "sum",
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    comm_turn: int = 0,
    rank_size: int = 0,
    block_size: int = 0,
    group_size: int = 0,
    is_amax_out: bool = False,
    y_dtype: GeType = 0,  # type: ignore[assignment]
    comm_mode: str = "ai_cpu",
) -> tuple[Tensor, Tensor]:
    if quant_scale is not None or is_amax_out or block_size or group_size:
        raise NotImplementedError("MatmulReduceScatterV2: quant_scale, is_amax_out and block sizes are not served")
    y = mm_reduce_scatter_base(
        x1.t() if is_trans_a else x1,
        x2.t() if is_trans_b else x2,
        group,
        rank_size,
        reduce_op=reduce_op,
        bias=bias,
        x1_scale=x1_scale,
        x2_scale=x2_scale,
        comm_turn=comm_turn,
        output_dtype=asked_of_ge(x1, y_dtype),
    )
    return y, torch.empty(0)


OPERATOR = of_torch_npu(
    "npu_mm_reduce_scatter_base",
    mm_reduce_scatter_base,
    ge=[
        GeKernel("MatmulReduceScatter", _ge_matmul_reduce_scatter),
        GeKernel("MatmulReduceScatterV2", _ge_matmul_reduce_scatter_v2),
    ],
)
