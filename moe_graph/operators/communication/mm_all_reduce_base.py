"""`npu_mm_all_reduce_base(x1, x2, hcom, *, bias, x3, antiquant_scale, dequant_scale, pertoken_scale, ...)`: the ranks' products, added up.

    x1 [..., K]   x2 [K, N]   -> [..., N]: the sum over the ranks of x1 @ x2 + bias + x3
    int8 x2 of float16 or bfloat16 x1: (x2 + antiquant_offset) * antiquant_scale [1] or [N] in place of x2
    int8 x1 and x2: the product * dequant_scale [1] or [N] * pertoken_scale [rows]

Source: the operator's page in the torch_npu documentation; GE MatmulAllReduce. Products and their sum are float32, rounded once. Served:
reduce_op sum, comm_turn 0; not groups of antiquant scales, quantised communication, the types of Ascend 950.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.communication import process_group
from moe_graph.operators.communication.scaled_product import product
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel

# GE's numbers of y_dtype.
_UNDEFINED, _GE_DTYPES = 28, {1: torch.float16, 27: torch.bfloat16}


def mm_all_reduce_base(
    x1: Tensor,
    x2: Tensor,
    hcom: str,
    *,
    reduce_op: str = "sum",
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    x3: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    comm_quant_scale_1: Tensor | None = None,
    comm_quant_scale_2: Tensor | None = None,
    antiquant_group_size: int = 0,
    comm_turn: int = 0,
    y_dtype: int | None = None,
    **others: Any,
) -> Tensor:
    """As the module's document says. Raises NotImplementedError, naming the argument, for a form it does not serve."""
    refused = {
        "reduce_op": reduce_op != "sum",
        "comm_turn": comm_turn,
        "comm_quant_scale_1": comm_quant_scale_1 is not None,
        "comm_quant_scale_2": comm_quant_scale_2 is not None,
        "antiquant_group_size": antiquant_group_size,
        **{name: value not in (None, 0) and name != "comm_mode" for name, value in others.items()},
    }
    for name, given in refused.items():
        if given:
            raise NotImplementedError(f"npu_mm_all_reduce_base: {name} is not served")
    asked = None if y_dtype is None else dtypes.from_number(y_dtype)
    return _compute(x1, x2, hcom, bias, antiquant_scale, antiquant_offset, x3, dequant_scale, pertoken_scale, asked)


def _compute(
    x1: Tensor,
    x2: Tensor,
    group: str,
    bias: Tensor | None,
    antiquant_scale: Tensor | None,
    antiquant_offset: Tensor | None,
    x3: Tensor | None,
    dequant_scale: Tensor | None,
    pertoken_scale: Tensor | None,
    asked: torch.dtype | None,
) -> Tensor:
    if antiquant_scale is not None:
        weight = x2.float() if antiquant_offset is None else x2.float() + antiquant_offset.float()
        x2 = weight * antiquant_scale.float()
    total = product(x1, x2, bias, pertoken_scale, dequant_scale)
    if x3 is not None:
        total = total + x3.float()
    y = process_group.all_reduce(total, "sum", process_group.named(group))
    if x1.dtype != torch.int8:
        return y.to(x1.dtype)
    assert dequant_scale is not None
    bfloat16 = dequant_scale.dtype == torch.bfloat16
    return y.to(asked or (torch.bfloat16 if bfloat16 else torch.float16))


def _ge_matmul_all_reduce(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x3: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    comm_quant_scale_1: Tensor | None = None,
    comm_quant_scale_2: Tensor | None = None,
    *,
    group: str,
    reduce_op: str = "sum",
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    comm_turn: int = 0,
    antiquant_group_size: int = 0,
    group_size: int = 0,
    y_dtype: int = 28,
    comm_quant_mode: int = 0,
    comm_mode: str = "ai_cpu",
) -> Tensor:
    y = mm_all_reduce_base(
        x1.transpose(-1, -2) if is_trans_a else x1,
        x2.t() if is_trans_b else x2,
        group,
        reduce_op=reduce_op,
        bias=bias,
        antiquant_scale=antiquant_scale,
        antiquant_offset=antiquant_offset,
        x3=x3,
        dequant_scale=dequant_scale,
        pertoken_scale=pertoken_scale,
        comm_quant_scale_1=comm_quant_scale_1,
        comm_quant_scale_2=comm_quant_scale_2,
        antiquant_group_size=antiquant_group_size,
        comm_turn=comm_turn,
        group_size=group_size,
        comm_quant_mode=comm_quant_mode,
    )
    return y if y_dtype == _UNDEFINED else y.to(_GE_DTYPES[y_dtype])


OPERATOR = of_torch_npu(
    "npu_mm_all_reduce_base", mm_all_reduce_base, ge=[GeKernel("MatmulAllReduce", _ge_matmul_all_reduce)]
)
