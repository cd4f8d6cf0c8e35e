"""`npu_dynamic_mx_quant(input, *, axis, round_mode, dst_type, block_size, scale_alg, dst_type_max, max_low_bound)`: block quantization.

    input [...] float16, bfloat16, float32, of 1 to 7 dimensions -> y like it, of dst_type, and mxscale uint8: `mx` says how both are laid
    axis            the blocks of block_size values lie along it; block_size a multiple of 32 up to 1024 (32 for float32 and scale_alg 2)
    dst_type        float4_e2m1 (default), float4_e1m2, float8_e4m3fn, float8_e5m2
    scale_alg       0; 1 for float8; 2 for float4_e2m1. dst_type_max 0, or 6 to 12 with scale_alg 2; max_low_bound >= 0 with scale_alg 1
    round_mode      "rint"; for float4 also "round" and "floor"

Only Ascend 950 has it. Sources: the documents of aclnnDynamicMxQuant, V2 and V3 (ops-nn, quant/dynamic_mx_quant), the reference function
beside the kernel, torch_npu's fake implementation. An odd last size is refused for float4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import mx

_check = Checks("npu_dynamic_mx_quant")


def check_modes(
    check: Checks, form: mx.Format, round_mode: str, scale_alg: int, dst_type_max: float, block_size: int = mx.BLOCK
) -> None:
    """Raise ValueError for modes that the documents exclude for this type of elements."""
    check.value("round_mode", round_mode, ("rint", "round", "floor") if form in mx.FLOAT4 else ("rint",))
    algorithms = {mx.E2M1: (0, 2), mx.E1M2: (0,)}.get(form, (0, 1))
    check.value("scale_alg", scale_alg, algorithms)
    if scale_alg == 2 and block_size != mx.BLOCK:
        check.refuse("block_size", f"{mx.BLOCK} with scale_alg 2", block_size)
    if dst_type_max != 0.0 and not (scale_alg == 2 and 6.0 <= dst_type_max <= 12.0):
        check.refuse("dst_type_max", "0, or from 6 to 12 with float4_e2m1 and scale_alg 2", dst_type_max)


def _computed(
    x: Tensor,
    form: mx.Format,
    axis: int,
    round_mode: str,
    block_size: int,
    scale_alg: int,
    dst_type_max: float,
    max_low_bound: float,
) -> tuple[Tensor, Tensor]:
    """Elements, one each, and mxscale as uint8."""
    mx.only_on_950("npu_dynamic_mx_quant")
    _check.dtype("input", x, (torch.float16, torch.bfloat16, torch.float32))
    _check.rank("input", x, range(1, 8), "of 1 to 7 dimensions")
    if not -x.dim() <= axis < x.dim():
        _check.refuse("axis", f"from {-x.dim()} to {x.dim() - 1}", axis)
    _check.value("block_size", block_size, range(mx.BLOCK, 1025, mx.BLOCK))
    check_modes(_check, form, round_mode, scale_alg, dst_type_max, block_size)
    if max_low_bound < 0 or (max_low_bound and scale_alg != 1):
        _check.refuse("max_low_bound", "0, or positive with scale_alg 1", max_low_bound)
    if x.dtype == torch.float32:
        _check.value("block_size", block_size, (mx.BLOCK,))
        _check.size(x.shape[axis] >= mx.BLOCK, "input", f"of at least {mx.BLOCK} along axis, being float32", x)
    elements, codes = mx.quantized(
        x.float(), axis, form, round_mode, scale_alg, dst_type_max, max_low_bound, block_size
    )
    return elements, mx.in_pairs(codes, axis)


def dynamic_mx_quant(
    x: Tensor,
    *,
    axis: int = -1,
    round_mode: str = "rint",
    dst_type: int = 296,
    block_size: int = 32,
    scale_alg: int | None = 0,
    dst_type_max: float = 0.0,
    max_low_bound: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """y and mxscale, as the module's document says. Raises ValueError for what it excludes."""
    form = mx.of_number("npu_dynamic_mx_quant: dst_type", dst_type)
    options = (axis, round_mode, block_size, scale_alg or 0, dst_type_max, max_low_bound)
    elements, scale = _computed(x, form, *options)
    return mx.stored(elements, form), scale


def _ge_dynamic_mx_quant(
    x: Tensor,
    *,
    axis: int = -1,
    round_mode: str = "rint",
    dst_type: GeType = 40,  # type: ignore[assignment]
    blocksize: int = 32,
    scale_alg: int = 0,
    dst_type_max: float = 0.0,
    max_low_bound: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """GE DynamicMxQuant."""
    form = mx.of_ge("DynamicMxQuant: dst_type", dst_type)
    elements, scale = _computed(x, form, axis, round_mode, blocksize, scale_alg, dst_type_max, max_low_bound)
    return elements, mx.as_e8m0(scale)


OPERATOR = of_torch_npu("npu_dynamic_mx_quant", dynamic_mx_quant, ge=[GeKernel("DynamicMxQuant", _ge_dynamic_mx_quant)])
