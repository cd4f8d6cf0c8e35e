"""ATB's `_npu_matmul_add_fp32(x, weight, C)`: C += x^T @ weight, written to C: a gradient of a weight, accumulated in float32.

    x [K, M], weight [K, N] float16 or bfloat16   C [M, N] float32

Source: op-plugin's C++ (op_plugin/ops/atb/LinearAtb.cpp) and test. Float32 inside. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("_npu_matmul_add_fp32")


def matmul_add_fp32(x: Tensor, weight: Tensor, C: Tensor) -> None:  # noqa: N803  the schema's name
    """Writes to C. Raises ValueError on arguments that the module's document excludes."""
    _check.dtype("x", x, (torch.float16, torch.bfloat16))
    _check.dtype("weight", weight, (x.dtype,))
    _check.dtype("C", C, (torch.float32,))
    for name, tensor in (("x", x), ("weight", weight)):
        _check.rank(name, tensor, (2,), "[K, M] and [K, N]")
    if len(weight) != len(x):
        _check.refuse("weight", f"of first size {len(x)}, that of x", f"shape {tuple(weight.shape)}")
    wanted = (x.shape[1], weight.shape[1])
    if tuple(C.shape) != wanted:
        _check.refuse("C", f"of shape {list(wanted)}", f"shape {tuple(C.shape)}")
    C.addmm_(x.t().float(), weight.float())


OPERATOR = of_torch_npu("_npu_matmul_add_fp32", matmul_add_fp32, namespace="atb")
