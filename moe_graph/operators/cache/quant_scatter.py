"""`npu_quant_scatter(input, indices, updates, quant_scales, ...)` and `npu_quant_scatter_`, in place: scatter_update of quantised updates.

    input [B, ...] int8   updates float16, bfloat16   quant_scales, quant_zero_points: one for each place of the last dimension
    written: round(updates / quant_scales + quant_zero_points), halves to even, within int8

Sources: the operator's page in the torch_npu documentation; GE QuantUpdateScatter. Not served: results of float8, other round modes,
a quant_axis that is not the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.cache.scatter_update import write_windows
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.quantization.int8 import to_int8


def quant_scatter_(
    x: Tensor,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None = None,
    axis: int = -2,
    quant_axis: int = -1,
    reduce: str = "update",
    dst_type: int | None = None,
    round_mode: str | None = "rint",
    reciprocal_scale: bool = False,
) -> Tensor:
    """x with the quantised updates, in place. reciprocal_scale: the scales are multiplied with."""
    if reduce != "update":
        raise NotImplementedError(f"reduce must be update, got {reduce!r}")
    if x.dtype != torch.int8 or round_mode not in (None, "rint"):
        raise NotImplementedError(f"input must be int8 and round_mode rint, got {x.dtype} and {round_mode!r}")
    if quant_axis not in (-1, updates.dim() - 1):
        raise NotImplementedError(f"quant_axis must be the last of {updates.dim()} dimensions, got {quant_axis}")
    scales = quant_scales.reshape(-1).float()
    scaled = updates.float() * scales if reciprocal_scale else updates.float() / scales
    if quant_zero_points is not None:
        scaled = scaled + quant_zero_points.reshape(-1).float()
    return write_windows(x, indices, to_int8(scaled), axis)


def quant_scatter(
    x: Tensor,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None = None,
    axis: int = -2,
    quant_axis: int = -1,
    reduce: str = "update",
    dst_type: int | None = None,
    round_mode: str | None = "rint",
) -> Tensor:
    """A copy of x with the quantised updates."""
    options = (quant_scales, quant_zero_points, axis, quant_axis, reduce, dst_type, round_mode)
    return quant_scatter_(x.clone(), indices, updates, *options)


def _ge_quant_update_scatter(
    var: Tensor,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None = None,
    *,
    reduce: str,
    axis: int = -2,
    quant_axis: int = -1,
    reciprocal_scale: bool = False,
    round_mode: str = "rint",
) -> Tensor:
    return quant_scatter_(
        var,
        indices,
        updates,
        quant_scales,
        quant_zero_points,
        axis,
        quant_axis,
        reduce,
        None,
        round_mode,
        reciprocal_scale,
    )


OPERATOR = of_torch_npu(
    "npu_quant_scatter",
    quant_scatter,
    ge=[GeKernel("QuantUpdateScatter", _ge_quant_update_scatter, assigns=("var",))],
)
IN_PLACE_OPERATOR = of_torch_npu("npu_quant_scatter_", quant_scatter_)
