"""`npu_quant_matmul_dequant(x, quantized_weight, weight_scale, ...)`: x becomes int8, is multiplied, and the product is scaled back.

    x [M, K] float16   quantized_weight [N, K] int8   weight_scale [N] float32   bias [N] int32   smooth_scale [K]
    quant_mode  "pertoken": x_scale [M], or None: max |x| / 127 of each row      "pertensor": x_scale [1]

    x = x * smooth_scale     q = round(x / x_scale)     y = (q @ quantized_weight^T + bias) * weight_scale * x_scale     float16 [M, N]

    weight_scale int64 holds float32 in its low 32 bits, x_scale's factor with them, and x_scale is float16 [1] (eager; torch_npu's fake
    implementation has float32 alone)

Source: the document of aclnnQuantMatmulDequant (ops-nn, matmul/quant_matmul_dequant). Sums are exact, the rest float32, rounded once.
Not served: x_offset, of which the document has no formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.matmul.products import exact_product
from moe_graph.operators.quantization import destination
from moe_graph.operators.quantization.int8 import INT8_MAX, dynamic_int8
from moe_graph.operators.quantization.trans_quant_param import unpacked

_check = Checks("npu_quant_matmul_dequant")
PER_TOKEN, PER_TENSOR = "pertoken", "pertensor"


def quant_matmul_dequant(
    x: Tensor,
    quantized_weight: Tensor,
    weight_scale: Tensor,
    *,
    bias: Tensor | None = None,
    x_scale: Tensor | None = None,
    x_offset: Tensor | None = None,
    smooth_scale: Tensor | None = None,
    quant_mode: str | None = PER_TOKEN,
) -> Tensor:
    """As the module's document says. Raises ValueError for a mode that it excludes, NotImplementedError for x_offset."""
    if x_offset is not None:
        raise NotImplementedError("npu_quant_matmul_dequant: x_offset must be None, it is not served")
    _check.value("quant_mode", quant_mode, (None, PER_TOKEN, PER_TENSOR))
    if quant_mode == PER_TENSOR and x_scale is None:
        _check.refuse("x_scale", "given with quant_mode 'pertensor'", None)
    values = x.float() if smooth_scale is None else x.float() * smooth_scale.float()
    if x_scale is None:
        quantized, tokens = dynamic_int8(values)
    else:
        tokens = x_scale.float().reshape(-1, 1)
        quantized = destination.rounded(values / tokens, INT8_MAX)
    sums = exact_product(quantized, quantized_weight.transpose(-1, -2))
    sums = sums if bias is None else sums + bias
    y = sums.float() * unpacked(weight_scale)[0]
    return (y if weight_scale.dtype == torch.int64 else y * tokens).to(x.dtype)


def _ge_quant_matmul_dequant(
    x: Tensor,
    quantized_weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    x_scale: Tensor | None = None,
    x_offset: Tensor | None = None,
    smooth_scale: Tensor | None = None,
    *,
    x_quant_mode: str = PER_TOKEN,
    transpose_weight: bool = True,
) -> Tensor:
    """GE QuantMatmulDequant."""
    return quant_matmul_dequant(
        x,
        quantized_weight if transpose_weight else quantized_weight.transpose(-1, -2),
        weight_scale,
        bias=bias,
        x_scale=x_scale,
        x_offset=x_offset,
        smooth_scale=smooth_scale,
        quant_mode=x_quant_mode,
    )


OPERATOR = of_torch_npu(
    "npu_quant_matmul_dequant",
    quant_matmul_dequant,
    ge=[GeKernel("QuantMatmulDequant", _ge_quant_matmul_dequant)],
)
