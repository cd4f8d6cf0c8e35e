"""`npu_quant_grouped_matmul_dequant(x, quantized_weight, weight_scale, group_list, ...)`: npu_quant_matmul_dequant, group by group.

    x [M, K] float16   quantized_weight [G, N, K] int8   weight_scale [G, N] float32   group_list [G] int64: where the groups' rows end
    x_scale [M] ("pertoken"), [1] ("pertensor"), or None: max |x| / 127 of each row   smooth_scale [K]   -> [M, N] float16

Rows behind the last group are 0 (a device leaves them undefined). Sources: op-plugin's test (skipped there) and C++, torch_npu's fake
implementation; npu_quant_matmul_dequant's document. Not served, for want of a formula: bias and x_offset.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.matmul.grouped_rows import CUMSUM, segments
from moe_graph.operators.matmul.quant_matmul_dequant import PER_TENSOR, PER_TOKEN, quant_matmul_dequant

_check = Checks("npu_quant_grouped_matmul_dequant")


def quant_grouped_matmul_dequant(
    x: Tensor,
    quantized_weight: Tensor,
    weight_scale: Tensor,
    group_list: Tensor,
    *,
    bias: Tensor | None = None,
    x_scale: Tensor | None = None,
    x_offset: Tensor | None = None,
    smooth_scale: Tensor | None = None,
    quant_mode: str | None = PER_TOKEN,
) -> Tensor:
    """As the module's document says. Raises ValueError on what it excludes, NotImplementedError for bias and x_offset."""
    for name, value in (("bias", bias), ("x_offset", x_offset)):
        if value is not None:
            raise NotImplementedError(f"npu_quant_grouped_matmul_dequant: {name} must be None, it has no document")
    _check.rank("quantized_weight", quantized_weight, (3,), "[G, N, K]")
    groups, width, _ = quantized_weight.shape
    if tuple(weight_scale.shape) != (groups, width):
        _check.refuse("weight_scale", f"of shape {[groups, width]}", f"shape {tuple(weight_scale.shape)}")
    y = x.new_zeros(x.shape[0], width)
    for group, rows in segments(_check, group_list, CUMSUM, groups, x.shape[0]):
        y[rows] = quant_matmul_dequant(
            x[rows],
            quantized_weight[group],
            weight_scale[group],
            x_scale=x_scale if x_scale is None or quant_mode == PER_TENSOR else x_scale[rows],
            smooth_scale=smooth_scale,
            quant_mode=quant_mode,
        )
    return y


def _ge_quant_grouped_matmul_dequant(
    x: Tensor,
    quantized_weight: Tensor,
    weight_scale: Tensor,
    group_list: Tensor,
    bias: Tensor | None = None,
    x_scale: Tensor | None = None,
    x_offset: Tensor | None = None,
    smooth_scale: Tensor | None = None,
    *,
    x_quant_mode: str = PER_TOKEN,
    transpose_weight: bool = True,
) -> Tensor:
    """GE QuantGroupedMatmulDequant."""
    return quant_grouped_matmul_dequant(
        x,
        quantized_weight if transpose_weight else quantized_weight.transpose(-1, -2),
        weight_scale,
        group_list,
        bias=bias,
        x_scale=x_scale,
        x_offset=x_offset,
        smooth_scale=smooth_scale,
        quant_mode=x_quant_mode,
    )


OPERATOR = of_torch_npu(
    "npu_quant_grouped_matmul_dequant",
    quant_grouped_matmul_dequant,
    ge=[GeKernel("QuantGroupedMatmulDequant", _ge_quant_grouped_matmul_dequant)],
)
