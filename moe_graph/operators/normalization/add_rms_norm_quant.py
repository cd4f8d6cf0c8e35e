"""RmsNorm with a quantisation behind it.

    npu_rms_norm_quant(x, gamma, beta, scale, offset, epsilon)              round((norm + beta) / scale + offset)
    npu_rms_norm_quant_v2(x, gamma, scale, *, offset, beta, div_mode, ...)  the same, and rstd [..., 1]; without div_mode * scale
    npu_add_rms_norm_quant(x1, x2, gamma, scales1, zero_points1, beta, scales2, zero_points2, ...)  (y1, y2, x1 + x2)
    npu_add_rms_norm_dynamic_quant(x1, x2, gamma, *, smooth_scale1, smooth_scale2, beta, output_mask, y_dtype)
                                                    (y1, y2, x1 + x2, scale1, scale2); scale: max |norm * smooth| of a row / 127

Sizes are x's; rows are its last dimension. Results int8, int4 packed in int32 [..., K / 8], or, but for the dynamic one, on Ascend 950
float8_e5m2, float8_e4m3fn, hifloat8 (as uint8). An output that output_mask leaves out, or
without its smooth scales, is empty: [0]. Sources: the operators' pages in the torch_npu documentation, torch_npu's fake implementations,
the documents of RmsNormQuant, AddRmsNormQuant, AddRmsNormDynamicQuantV2 (ops-nn). Float32 inside, rounded once, halves to even
(hifloat8: away from zero). Not served: npu_add_rms_norm_dynamic_quant to float8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.normalization.rms_norm import rms_norm
from moe_graph.operators.quantization.destination import dynamic, largest, rounded


def norm(x: Tensor, gamma: Tensor, beta: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor]:
    """float32 RmsNorm, plus beta; and rstd. gamma, beta [1, H] are [H]."""
    if gamma.dim() == 2 and gamma.shape[0] == 1:
        gamma, beta = gamma[0], None if beta is None else beta.reshape(-1)
    y, rstd = rms_norm(x.float(), gamma, epsilon)
    return (y if beta is None else y + beta.float()), rstd


def quantized(y: Tensor, scale: Tensor, offset: Tensor | None, div_mode: bool, maximum: float) -> Tensor:
    """y / scale + offset (div_mode), else y * scale + offset, in the type whose largest value this is."""
    scaled = y / scale.float() if div_mode else y * scale.float()
    return rounded(scaled if offset is None else scaled + offset.float(), maximum)


def rms_norm_quant(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    scale: Tensor,
    offset: Tensor,
    epsilon: float = 1e-6,
    *,
    dst_dtype: int | None = None,
) -> Tensor:
    """The quantised norm."""
    y, _ = norm(x, gamma, beta, epsilon)
    return quantized(y, scale, offset, True, largest("dst_dtype", dst_dtype, float8=True))


def rms_norm_quant_v2(
    x: Tensor,
    gamma: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-6,
    div_mode: bool = True,
    dst_dtype: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The quantised norm, and rstd."""
    y, rstd = norm(x, gamma, beta, epsilon)
    return quantized(y, scale, offset, div_mode, largest("dst_dtype", dst_dtype, float8=True)), rstd


def add_rms_norm_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    zero_points1: Tensor | None,
    beta: Tensor | None = None,
    scales2: Tensor | None = None,
    zero_points2: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    div_mode: bool = True,
    dst_type: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y1, y2 and x1 + x2. Without scales2 y2 is 0; a device leaves it as it was."""
    if axis != -1:
        raise ValueError(f"axis must be -1, got {axis}")
    maximum = largest("dst_type", dst_type, float8=True)
    total = x1 + x2
    y, _ = norm(total, gamma, beta, epsilon)
    first = quantized(y, scales1, zero_points1, div_mode, maximum)
    second = torch.zeros_like(first) if scales2 is None else quantized(y, scales2, zero_points2, div_mode, maximum)
    return first, second, total


def _dynamic(y: Tensor, smooth: Tensor | None, maximum: float) -> tuple[Tensor, Tensor]:
    """Quantised rows and their scales [...]; a row of zeros has scale 0 and stays 0."""
    y, scale = dynamic(y if smooth is None else y * smooth.float(), maximum)
    return y, scale.squeeze(-1)


def _empty(maximum: float) -> tuple[Tensor, Tensor]:
    return rounded(torch.empty(0), maximum), torch.empty(0)


def add_rms_norm_dynamic_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    *,
    smooth_scale1: Tensor | None = None,
    smooth_scale2: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-6,
    output_mask: Sequence[bool] | None = None,
    y_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y1, y2, x1 + x2, scale1, scale2."""
    maximum = largest("y_dtype", y_dtype)
    both = smooth_scale1 is not None and smooth_scale2 is not None
    wanted = list(output_mask) if output_mask else [True, both]
    total = x1 + x2
    y, _ = norm(total, gamma, beta, epsilon)
    y1, scale1 = _dynamic(y, smooth_scale1, maximum) if wanted[0] else _empty(maximum)
    y2, scale2 = _dynamic(y, smooth_scale2, maximum) if wanted[1] else _empty(maximum)
    return y1, y2, total, scale1, scale2


def _ge_add_rms_norm_dynamic_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    smooth_scale1: Tensor | None = None,
    smooth_scale2: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    epsilon: float = 1e-6,
    output_mask: list = (),  # type: ignore[assignment]
    dst_type: GeType = 2,  # type: ignore[assignment]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if dst_type.name != "DT_INT8":
        raise NotImplementedError(f"dst_type must be DT_INT8, got {dst_type.name}")
    return add_rms_norm_dynamic_quant(
        x1,
        x2,
        gamma,
        smooth_scale1=smooth_scale1,
        smooth_scale2=smooth_scale2,
        beta=beta,
        epsilon=epsilon,
        output_mask=output_mask,
    )


OPERATOR = of_torch_npu("npu_add_rms_norm_quant", add_rms_norm_quant)
DYNAMIC_OPERATOR = of_torch_npu(
    "npu_add_rms_norm_dynamic_quant",
    add_rms_norm_dynamic_quant,
    ge=[GeKernel("AddRmsNormDynamicQuant", _ge_add_rms_norm_dynamic_quant)],
)
NORM_OPERATOR = of_torch_npu("npu_rms_norm_quant", rms_norm_quant)
NORM_V2_OPERATOR = of_torch_npu("npu_rms_norm_quant_v2", rms_norm_quant_v2)
