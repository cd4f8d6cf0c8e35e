"""`npu_quant_gmm_alltoallv`: `npu_gmm_alltoallv` of float8, hifloat8 and float4: the experts' last product, and the AlltoAll behind it.

Types, scales and quant modes are those of `alltoallv_quant_gmm`; gmm_x [sum(send_counts), H] is in expert order, and its scales with it.

It has no page; sources: torch_npu's fake implementation and torchair's converter, and the pages of npu_gmm_alltoallv and of
npu_alltoallv_quant_gmm. Products are nearly exact, scaling is float32, rounded once before the rows are sent. Not served: counts as
tensors, quantised communication, float4 in a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.communication.alltoallv_quant_gmm import eager_call, ge_call
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType, Planned


def quant_gmm_alltoallv(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    gmm_x_scale: Tensor,
    gmm_weight_scale: Tensor,
    hcom: str,
    ep_world_size: int,
    send_counts: Sequence[int],
    recv_counts: Sequence[int],
    gmm_y_dtype: int,
    *,
    send_counts_tensor: Tensor | None = None,
    recv_counts_tensor: Tensor | None = None,
    mm_x: Tensor | None = None,
    mm_weight: Tensor | None = None,
    mm_x_scale: Tensor | None = None,
    mm_weight_scale: Tensor | None = None,
    comm_quant_scale: Tensor | None = None,
    gmm_x_quant_mode: int | None = None,
    gmm_weight_quant_mode: int | None = None,
    mm_x_quant_mode: int | None = None,
    mm_weight_quant_mode: int | None = None,
    comm_quant_mode: int | None = None,
    group_size: Sequence[int] | None = None,
    gmm_x_dtype: int | None = None,
    gmm_weight_dtype: int | None = None,
    gmm_x_scale_dtype: int | None = None,
    gmm_weight_scale_dtype: int | None = None,
    mm_x_dtype: int | None = None,
    mm_weight_dtype: int | None = None,
    mm_x_scale_dtype: int | None = None,
    mm_weight_scale_dtype: int | None = None,
    comm_quant_dtype: int | None = None,
    mm_y_dtype: int | None = None,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y and mm_y; the latter None where it is not asked for."""
    _without_quantised_communication(comm_quant_scale, comm_quant_mode)
    return eager_call(
        "npu_quant_gmm_alltoallv",
        (gmm_x, gmm_weight, gmm_x_scale, gmm_weight_scale),
        (mm_x, mm_weight, mm_x_scale, mm_weight_scale),
        (gmm_x_dtype, gmm_weight_dtype, mm_x_dtype, mm_weight_dtype),
        (gmm_x_scale_dtype, gmm_weight_scale_dtype, mm_x_scale_dtype, mm_weight_scale_dtype),
        (gmm_y_dtype, mm_y_dtype),
        group_size,
        modes=(gmm_x_quant_mode, gmm_weight_quant_mode),
        mm_modes=(mm_x_quant_mode, mm_weight_quant_mode),
        hcom=hcom,
        ranks=ep_world_size,
        counts=(send_counts, recv_counts),
        count_tensors=(send_counts_tensor, recv_counts_tensor),
    ).back()


def _without_quantised_communication(comm_quant_scale: Tensor | None, comm_quant_mode: int | None) -> None:
    if comm_quant_scale is not None or comm_quant_mode:
        raise NotImplementedError(
            "npu_quant_gmm_alltoallv: comm_quant_scale must be None and comm_quant_mode 0: quantised communication is not served, "
            f"got mode {comm_quant_mode}"
        )


def _ge_quant_grouped_mat_mul_alltoallv(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    gmm_x_scale: Tensor,
    gmm_weight_scale: Tensor,
    send_counts_tensor: Tensor | None = None,
    recv_counts_tensor: Tensor | None = None,
    mm_x: Tensor | None = None,
    mm_weight: Tensor | None = None,
    mm_x_scale: Tensor | None = None,
    mm_weight_scale: Tensor | None = None,
    comm_quant_scale: Tensor | None = None,
    *,
    group: str,
    ep_world_size: int,
    send_counts: list,
    recv_counts: list,
    gmm_x_quant_mode: int,
    gmm_weight_quant_mode: int,
    trans_gmm_weight: bool = False,
    trans_mm_weight: bool = False,
    mm_x_quant_mode: int = 0,
    mm_weight_quant_mode: int = 0,
    comm_quant_mode: int = 0,
    group_size: int = 0,
    y_dtype: GeType = 28,  # type: ignore[assignment]  # undefined, which is refused; torchair always gives it
    mm_dtype: GeType = 28,  # type: ignore[assignment]  # as y_dtype
    comm_quant_dtype: int = 0,
    comm_mode: str = "",
    node: Planned,
) -> tuple[Tensor, Tensor]:
    """GE QuantGroupedMatMulAlltoAllv."""
    _without_quantised_communication(comm_quant_scale, comm_quant_mode)
    y, mm_y = ge_call(
        node,
        (gmm_x, gmm_weight, gmm_x_scale, gmm_weight_scale, mm_x, mm_weight, mm_x_scale, mm_weight_scale),
        (send_counts_tensor, recv_counts_tensor),
        group,
        ep_world_size,
        (send_counts, recv_counts),
        (gmm_x_quant_mode, gmm_weight_quant_mode),
        (mm_x_quant_mode, mm_weight_quant_mode),
        (trans_gmm_weight, trans_mm_weight),
        y_dtype,
        mm_dtype,
    ).back()
    return y, torch.empty(0) if mm_y is None else mm_y


OPERATOR = of_torch_npu(
    "npu_quant_gmm_alltoallv",
    quant_gmm_alltoallv,
    ge=[GeKernel("QuantGroupedMatMulAlltoAllv", _ge_quant_grouped_mat_mul_alltoallv)],
)
