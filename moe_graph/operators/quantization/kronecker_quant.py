"""`npu_kronecker_quant(x, kronecker_p1, kronecker_p2, clip_ratio=None, ...)`: matrices turned from both sides, then int4.

    x [K, M, N] float16, bfloat16   kronecker_p1 [M, M], kronecker_p2 [N, N]   v = p1 @ x @ p2
    scale [K] = max |v| * clip_ratio / 7   y = round(v / scale) within -8 and 7, packed in int32 [K, M, N / 8]
    Where all values are 0, scale and y are.

Sources: the document of aclnnFlatQuant (ops-nn, quant/flat_quant), its kernel for the rounding (op-plugin's test divides by clip_ratio
where document and kernel multiply). Float32 inside. Not served: float4 (Ascend 950).
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.quantization import destination, int4

_INT32 = 3


def _kronecker(x: Tensor, p1: Tensor, p2: Tensor, clip_ratio: float) -> tuple[Tensor, Tensor]:
    """Whole numbers as float32 [K, M, N], scale [K]."""
    values = p1.float() @ x.float() @ p2.float()
    scale = values.abs().amax((1, 2), keepdim=True) * clip_ratio / int4.INT4_MAX
    return destination.steps(values, scale, int4.INT4_MAX), scale.reshape(-1)


def kronecker_quant(
    x: Tensor,
    kronecker_p1: Tensor,
    kronecker_p2: Tensor,
    clip_ratio: float | None = None,
    dst_dtype: int | None = None,
    dst_type_max: float | None = None,
) -> tuple[Tensor, Tensor]:
    """y and scale. Raises NotImplementedError for another type than int4 in int32."""
    if dst_dtype not in (None, _INT32) or dst_type_max:
        raise NotImplementedError(
            f"npu_kronecker_quant: dst_dtype must be int32 and dst_type_max 0, got {dst_dtype} and {dst_type_max}"
        )
    y, scale = _kronecker(x, kronecker_p1, kronecker_p2, 1.0 if clip_ratio is None else clip_ratio)
    return int4.packed(y), scale


def _ge_flat_quant(
    x: Tensor,
    kronecker_p1: Tensor,
    kronecker_p2: Tensor,
    *,
    clip_ratio: float = 1.0,
    dst_dtype: int = 3,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """GE FlatQuant, of int4: DT_INT32 stands for it."""
    if dst_dtype != _INT32 or dst_type_max:
        raise NotImplementedError(f"FlatQuant: dst_dtype must be DT_INT32 (3), got {dst_dtype}")
    y, scale = _kronecker(x, kronecker_p1, kronecker_p2, clip_ratio)
    return int4.carried(y), scale


OPERATOR = of_torch_npu("npu_kronecker_quant", kronecker_quant, ge=[GeKernel("FlatQuant", _ge_flat_quant)])
