"""Compute operators of a Mixture-of-Experts layer: GE's names and attributes over the fallbacks of `moe_graph.family`."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.dtypes import from_ge
from moe_graph.engine.registry import Tensors, kernel
from moe_graph.family import dtypes, swiglu
from moe_graph.family.dequant_swiglu_quant import DYNAMIC, STATIC
from moe_graph.family.dequant_swiglu_quant import dequant_swiglu_quant as dequant_swiglu_quant_fallback
from moe_graph.family.dynamic_quant import dynamic_quant as dynamic_quant_fallback
from moe_graph.family.grouped_matmul import grouped_matmul as grouped_matmul_fallback

# GroupedMatmul's attribute `dtype`, of int8 x: -1 leaves the output's type open.
_GROUPED_MATMUL_DTYPES = {0: torch.float16, 1: torch.bfloat16, 2: torch.int32}


@kernel("GroupedMatmul")
def grouped_matmul(
    x: Tensors,
    weight: Tensors,
    bias: Tensors,
    scale: Tensors,
    offset: Tensors,
    antiquant_scale: Tensors,
    antiquant_offset: Tensors,
    group_list: Tensor | None = None,
    per_token_scale: Tensor | None = None,
    *,
    split_item: int = 0,
    dtype: int = 0,
    transpose_weight: bool = False,
    transpose_x: bool = False,
    group_type: int = -1,
    group_list_type: int = 0,
    act_type: int = 0,
    tuning_config: list | None = None,
) -> list[Tensor]:
    """GE GroupedMatmul. A dynamic input that is left out comes as one tensor of no elements; matrices come as they are, never
    transposed by an attribute. With group_type -1 a group_list is the one that was given as integers."""
    if transpose_weight or transpose_x:
        raise ValueError("transpose_weight and transpose_x must be false, as torchair sets them")
    listed = group_list.tolist() if group_type == -1 and group_list is not None else group_list
    return grouped_matmul_fallback(
        x,
        weight,
        bias=_given(bias),
        scale=_given(scale),
        offset=_given(offset),
        antiquant_scale=_given(antiquant_scale),
        antiquant_offset=_given(antiquant_offset),
        per_token_scale=None if per_token_scale is None else [per_token_scale],
        group_list=listed,
        split_item=split_item,
        group_type=group_type,
        group_list_type=group_list_type,
        act_type=act_type,
        output_dtype=dtypes.to_number(_GROUPED_MATMUL_DTYPES[dtype]) if x[0].dtype == torch.int8 else None,
    )


def _given(tensors: Tensors) -> Tensors | None:
    return None if len(tensors) == 1 and tensors[0].shape == (0,) else tensors or None


@kernel("SwiGlu")
def swi_glu(x: Tensor, *, dim: int = -1) -> Tensor:
    """GE SwiGlu: the swish of the first half of x along dim times the second half."""
    return swiglu.swiglu(x, dim)


@kernel("SwiGluGrad")
def swi_glu_grad(y_grad: Tensor, x: Tensor, *, dim: int = -1) -> Tensor:
    """GE SwiGluGrad: gradient of SwiGlu at x."""
    return swiglu.swiglu_backward(y_grad, x, dim)


def _only_int8(dst_type: int) -> None:
    if from_ge(dst_type).name != "DT_INT8":
        raise ValueError(f"dst_type must be DT_INT8 (no other type has a fallback), got {from_ge(dst_type).name}")


@kernel("DynamicQuant")
def dynamic_quant(
    x: Tensor, smooth_scales: Tensor | None = None, group_index: Tensor | None = None, *, dst_type: int = 2
) -> tuple[Tensor, Tensor]:
    """GE DynamicQuant: int8 and a scale for each token."""
    _only_int8(dst_type)
    return dynamic_quant_fallback(x, smooth_scales=smooth_scales, group_index=group_index)


@kernel("DynamicQuantV2")
def dynamic_quant_v2(
    x: Tensor,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    *,
    dst_type: int = 2,
    is_symmetrical: bool = False,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE DynamicQuantV2, the symmetric form: its third output, the offset, is 0 and read by nobody."""
    _only_int8(dst_type)
    if not is_symmetrical:
        raise ValueError("is_symmetrical must be true: asymmetric quantization is not modelled")
    y, scale = dynamic_quant_fallback(
        x, smooth_scales=smooth_scales, group_index=group_index, quant_mode=quant_mode, dst_type_max=dst_type_max
    )
    return y, scale, torch.zeros_like(scale)


@kernel("DequantSwigluQuant")
def dequant_swiglu_quant(
    x: Tensor,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    group_index: Tensor | None = None,
    *,
    activate_left: bool = False,
    quant_mode: str = "static",
    dst_type: int = 2,
    round_mode: str = "rint",
    activate_dim: int = -1,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """GE DequantSwigluQuant: dequantize, swiglu, quantize to int8."""
    _only_int8(dst_type)
    if round_mode != "rint":
        raise ValueError(f"round_mode must be 'rint' for int8, got {round_mode!r}")
    modes = {"static": STATIC, "dynamic": DYNAMIC}
    if quant_mode not in modes:
        raise ValueError(f"quant_mode must be one of {list(modes)}, got {quant_mode!r}")
    return dequant_swiglu_quant_fallback(
        x,
        weight_scale=weight_scale,
        activation_scale=activation_scale,
        bias=bias,
        quant_scale=quant_scale,
        quant_offset=quant_offset,
        group_index=group_index,
        activate_left=activate_left,
        quant_mode=modes[quant_mode],
        activate_dim=activate_dim,
        swiglu_mode=swiglu_mode,
        clamp_limit=clamp_limit,
        glu_alpha=glu_alpha,
        glu_bias=glu_bias,
    )
