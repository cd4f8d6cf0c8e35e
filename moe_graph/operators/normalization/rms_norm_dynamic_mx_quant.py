"""RmsNorm with block quantization behind it.

    npu_rms_norm_dynamic_mx_quant(x, gamma, *, beta, epsilon, scale_alg, round_mode, dst_type)              (y, mxscale, rstd)
    npu_add_rms_norm_dynamic_mx_quant(x1, x2, gamma, *, beta, epsilon, scale_alg, round_mode, dst_type)     (y, x1 + x2, mxscale, rstd)

    x [..., H] float16, bfloat16, of 1 to 7 dimensions   gamma, beta [H] of x's dtype or float32   rstd float32 [..., 1]
    y, mxscale      npu_dynamic_mx_quant of x * rstd * gamma + beta along the last dimension, scale_alg 0, or 1 for float8

In a graph rstd is computed, too, though its node does not ask for it (output_rstd). Only Ascend 950 has them. Sources: the documents of
aclnnRmsNormDynamicMxQuant and aclnnAddRmsNormDynamicMxQuant (ops-nn, norm) and their kernels, torch_npu's fake implementations. Float32
inside; the norm, as x1 + x2 before it, is rounded to x's dtype and then quantised, as the kernels do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.normalization.add_rms_norm_quant import norm
from moe_graph.operators.quantization import mx
from moe_graph.operators.quantization.dynamic_mx_quant import check_modes

_PLAIN, _ADDED = "npu_rms_norm_dynamic_mx_quant", "npu_add_rms_norm_dynamic_mx_quant"


def _computed(
    name: str,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    epsilon: float,
    scale_alg: int,
    round_mode: str,
    form: mx.Format,
) -> tuple[Tensor, Tensor, Tensor]:
    """Elements, one each, mxscale as uint8, rstd."""
    mx.only_on_950(name)
    check = Checks(name)
    check.dtype("x", x, (torch.float16, torch.bfloat16))
    check.rank("x", x, range(1, 8), "of 1 to 7 dimensions")
    for argument, tensor in (("gamma", gamma), ("beta", beta)):
        if tensor is not None:
            check.dtype(argument, tensor, (x.dtype, torch.float32))
            check.size(list(tensor.shape) == [x.shape[-1]], argument, f"of shape [{x.shape[-1]}]", tensor)
    check.value("scale_alg", scale_alg, (0, 1))
    check_modes(check, form, round_mode, scale_alg, 0.0)
    y, rstd = norm(x, gamma, beta, epsilon)
    elements, codes = mx.quantized(y.to(x.dtype).float(), -1, form, round_mode, scale_alg)
    return elements, mx.in_pairs(codes, -1), rstd


def rms_norm_dynamic_mx_quant(
    x: Tensor,
    gamma: Tensor,
    *,
    beta: Tensor | None = None,
    epsilon: float = 1e-6,
    scale_alg: int = 0,
    round_mode: str = "rint",
    dst_type: int = 296,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mxscale, rstd, as the module's document says. Raises ValueError for what it excludes."""
    form = mx.of_number(f"{_PLAIN}: dst_type", dst_type)
    elements, scale, rstd = _computed(_PLAIN, x, gamma, beta, epsilon, scale_alg, round_mode, form)
    return mx.stored(elements, form), scale, rstd


def add_rms_norm_dynamic_mx_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    *,
    beta: Tensor | None = None,
    epsilon: float = 1e-6,
    scale_alg: int = 0,
    round_mode: str = "rint",
    dst_type: int = 296,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, x1 + x2, mxscale, rstd, as the module's document says. Raises ValueError for what it excludes."""
    form = mx.of_number(f"{_ADDED}: dst_type", dst_type)
    total = x1 + x2
    elements, scale, rstd = _computed(_ADDED, total, gamma, beta, epsilon, scale_alg, round_mode, form)
    return mx.stored(elements, form), total, scale, rstd


def _ge_rms_norm_dynamic_mx_quant(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    *,
    epsilon: float = 1e-6,
    scale_alg: int = 0,
    round_mode: str = "rint",
    dst_type: GeType = 40,  # type: ignore[assignment]
    output_rstd: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """GE RmsNormDynamicMxQuant."""
    form = mx.of_ge("RmsNormDynamicMxQuant: dst_type", dst_type)
    elements, scale, rstd = _computed(_PLAIN, x, gamma, beta, epsilon, scale_alg, round_mode, form)
    return elements, mx.as_e8m0(scale), rstd


def _ge_add_rms_norm_dynamic_mx_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    *,
    epsilon: float = 1e-6,
    scale_alg: int = 0,
    round_mode: str = "rint",
    dst_type: GeType = 40,  # type: ignore[assignment]
    output_rstd: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GE AddRmsNormDynamicMxQuant."""
    form = mx.of_ge("AddRmsNormDynamicMxQuant: dst_type", dst_type)
    total = x1 + x2
    elements, scale, rstd = _computed(_ADDED, total, gamma, beta, epsilon, scale_alg, round_mode, form)
    return elements, total, mx.as_e8m0(scale), rstd


OPERATOR = of_torch_npu(
    _PLAIN, rms_norm_dynamic_mx_quant, ge=[GeKernel("RmsNormDynamicMxQuant", _ge_rms_norm_dynamic_mx_quant)]
)
ADD_OPERATOR = of_torch_npu(
    _ADDED, add_rms_norm_dynamic_mx_quant, ge=[GeKernel("AddRmsNormDynamicMxQuant", _ge_add_rms_norm_dynamic_mx_quant)]
)
