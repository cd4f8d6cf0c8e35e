"""`_npu_rms_norm_backward_quant(dy, x, rstd, gamma, scale_x, *, offset_x, div_mode, quant_mode, dst_type)`: npu_rms_norm's gradient, int8.

    dy, x [..., *gamma.shape]   rstd [...] or with the normalized dimensions of size 1   scale_x [1] or gamma's   offset_x int32 likewise
    -> dx int8: round(dx / scale_x + offset_x) (div_mode), else round(dx * scale_x + offset_x); dgamma float32

Sources: op-plugin's C++ and test, whose golden is npu_rms_norm_backward and npu_quantize behind it (which rounds dx to x's dtype between
them; here it stays float32). Served: quant_mode "static", int8. CANN 8.5 has no kernel of this name yet.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.normalization.add_rms_norm_quant import quantized
from moe_graph.operators.normalization.rms_norm import rms_norm_backward
from moe_graph.operators.quantization import destination
from moe_graph.operators.quantization.int8 import INT8_MAX, only_int8

_check = Checks("_npu_rms_norm_backward_quant")
_STATIC = "static"


def rms_norm_backward_quant(
    dy: Tensor,
    x: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    scale_x: Tensor,
    *,
    offset_x: Tensor | None = None,
    div_mode: bool | None = True,
    quant_mode: str = _STATIC,
    dst_type: int | None = destination.INT8_NUMBER,
) -> tuple[Tensor, Tensor]:
    """dx and dgamma. Raises ValueError for another quant_mode, NotImplementedError for another type than int8."""
    _check.value("quant_mode", quant_mode, (_STATIC,))
    if dst_type not in (None, destination.INT8_NUMBER):
        raise NotImplementedError(f"_npu_rms_norm_backward_quant: dst_type must be int8 (1), got {dst_type}")
    rows = rstd.reshape(*x.shape[: x.dim() - gamma.dim()], *[1] * gamma.dim())
    dx, dgamma = rms_norm_backward(dy.float(), x.float(), gamma, rows)
    return quantized(dx, scale_x, offset_x, bool(div_mode), INT8_MAX), dgamma


def _ge_rms_norm_grad_quant(
    dy: Tensor,
    x: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    scale_x: Tensor,
    offset_x: Tensor | None = None,
    *,
    div_mode: bool = True,
    quant_mode: str = _STATIC,
    dst_type: GeType = 2,  # type: ignore[assignment]
) -> tuple[Tensor, Tensor]:
    """GE RmsNormGradQuant."""
    only_int8(dst_type)
    return rms_norm_backward_quant(
        dy, x, rstd, gamma, scale_x, offset_x=offset_x, div_mode=div_mode, quant_mode=quant_mode
    )


OPERATOR = of_torch_npu(
    "_npu_rms_norm_backward_quant",
    rms_norm_backward_quant,
    ge=[GeKernel("RmsNormGradQuant", _ge_rms_norm_grad_quant)],
)
