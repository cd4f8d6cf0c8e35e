"""`npu_anti_mx_quant(x, mxscale, *, axis, dst_type, src_type)`: what npu_dynamic_mx_quant made, as floating point again.

    x [...] float8_e4m3fn, float8_e5m2, or float4 two to a byte (uint8; src_type says which)   mxscale as `mx` says, of blocks along axis
    y = x * 2^(code - 127), float16, bfloat16 (default) or float32

Only Ascend 950 has it. Sources: the document of aclnnAntiMxQuant (ops-nn, quant/anti_mx_quant), torch_npu's fake implementation, whose
blocks have 32 values. The product is exact in float32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType, Planned, type_of_input
from moe_graph.operators.quantization import mx

_check = Checks("npu_anti_mx_quant")
_RESULTS = (torch.float16, torch.bfloat16, torch.float32)


def _computed(elements: Tensor, form: mx.Format, mxscale: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    mx.only_on_950("npu_anti_mx_quant")
    if not -elements.dim() <= axis < elements.dim():
        _check.refuse("axis", f"from {-elements.dim()} to {elements.dim() - 1}", axis)
    axis %= elements.dim()
    shape = list(elements.shape)
    length = shape[axis]
    shape[axis] = -(-length // (2 * mx.BLOCK))
    _check.size(list(mxscale.shape) == [*shape, 2], "mxscale", f"of shape {[*shape, 2]}", mxscale)
    codes = mx.of_pairs(mxscale, axis).repeat_interleave(mx.BLOCK, axis).narrow(axis, 0, length)
    return (mx.decoded(elements, form).double() * mx.power(codes)).to(dtype)


def anti_mx_quant(
    x: Tensor, mxscale: Tensor, *, axis: int | None = -1, dst_type: int | None = 15, src_type: int | None = 292
) -> Tensor:
    """y, as the module's document says. Raises ValueError for what it excludes."""
    dtype = dtypes.from_number(15 if dst_type is None else dst_type)
    if dtype not in _RESULTS:
        _check.refuse("dst_type", "float16, bfloat16 or float32", dtypes.name(15 if dst_type is None else dst_type))
    by_dtype = {form.dtype: form for form in mx.FLOAT8 if form.dtype is not None}
    if x.dtype in by_dtype:
        form = by_dtype[x.dtype]
    else:
        _check.dtype("x", x, (*by_dtype, torch.uint8))
        form = mx.of_number("npu_anti_mx_quant: src_type", 292 if src_type is None else src_type, mx.FLOAT4)
    return _computed(mx.elements_of(x, form), form, mxscale, -1 if axis is None else axis, dtype)


def _ge_anti_mx_quant(
    x: Tensor,
    mxscale: Tensor,
    *,
    axis: int = -1,
    dst_type: GeType = 27,  # type: ignore[assignment]
    node: Planned,
) -> Tensor:
    """GE AntiMxQuant. Which type x has its descriptor tells."""
    form = mx.of_name("AntiMxQuant: x", type_of_input(node, 0))
    return _computed(x, form, mxscale, axis, dst_type.torch)


OPERATOR = of_torch_npu("npu_anti_mx_quant", anti_mx_quant, ge=[GeKernel("AntiMxQuant", _ge_anti_mx_quant)])
