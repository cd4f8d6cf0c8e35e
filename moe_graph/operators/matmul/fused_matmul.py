"""`npu_fused_matmul(x, x2, *, bias=None, x3=None, fused_op_type="")`: a product, and one operation on it.

    x [..., M, K], x2 [..., K, N] of one dtype, float16, bfloat16 or float32; their batches broadcast   bias [N]   x3 [..., M, N]

    fused_op_type  ""            y = x @ x2 + bias          "relu"        y = relu(x @ x2 + bias)
                   "add"         y = x @ x2 + bias + x3     "mul"         y = (x @ x2 + bias) * x3
                   "gelu_erf"    y = gelu(x @ x2)           "gelu_tanh"   y = its approximation by tanh
                   "16cast32"    y = x @ x2 + bias, float32

Source: the document of aclnnFusedMatmul (ops-nn, Ascend 950); op-plugin's C++ for shapes. Float32 inside, rounded once to x's dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel

_check = Checks("npu_fused_matmul")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "mul": torch.mul}
_OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda y: y,
    "relu": torch.relu,
    "16cast32": lambda y: y,
    "gelu_erf": functional.gelu,
    "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
}
_WITHOUT_BIAS = ("gelu_erf", "gelu_tanh")


def fused_matmul(
    x: Tensor, x2: Tensor, *, bias: Tensor | None = None, x3: Tensor | None = None, fused_op_type: str = ""
) -> Tensor:
    """As the module's document says. Raises ValueError on arguments that it excludes."""
    _check.value("fused_op_type", fused_op_type, (*_OF_ONE, *_OF_TWO))
    _check.dtype("x", x, _FLOATS)
    _check.dtype("x2", x2, (x.dtype,))
    if x.dim() < 2 or x2.dim() < 2:
        _check.refuse("x and x2", "of rank 2 or more", f"shapes {tuple(x.shape)} and {tuple(x2.shape)}")
    if (x3 is not None) != (fused_op_type in _OF_TWO):
        _check.refuse("x3", "given with fused_op_type 'add' and 'mul', and else not", f"{fused_op_type!r}, x3 {x3}")
    if bias is not None and fused_op_type in _WITHOUT_BIAS:
        _check.absent("bias", bias, f"fused_op_type {fused_op_type!r} has none")
    y = x.float() @ x2.float()
    if bias is not None:
        y = y + bias.float()
    y = _OF_ONE[fused_op_type](y) if x3 is None else _OF_TWO[fused_op_type](y, x3.float())
    return y if fused_op_type == "16cast32" else y.to(x.dtype)


def _ge_fused_matmul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x3: Tensor | None = None,
    *,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    enable_hf32: bool = False,
    fused_op_type: str = "",
) -> Tensor:
    """GE FusedMatMul. HF32 is computed as float32, which it approximates."""
    left, right = (x.transpose(-1, -2) if turned else x for x, turned in ((x1, transpose_x1), (x2, transpose_x2)))
    return fused_matmul(left, right, bias=bias, x3=x3, fused_op_type=fused_op_type)


OPERATOR = of_torch_npu("npu_fused_matmul", fused_matmul, ge=[GeKernel("FusedMatMul", _ge_fused_matmul)])
