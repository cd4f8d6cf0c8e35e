"""`npu_swiglu(input, dim=-1)`: the halves of `input` along `dim` are A and B; the result is silu(A) * B.

Source: the operator's page in the torch_npu documentation; GE SwiGlu. Intermediate values are float32 for float16 and bfloat16, as in
the kernel, and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.family.checks import Checks
from moe_graph.family.declaration import declare

_check = Checks("npu_swiglu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _check_arguments(x: Tensor, dim: int) -> None:
    """Raise ValueError unless `input` is floating point and has an even size along `dim`."""
    _check.dtype("input", x, DTYPES)
    _check.value("dim", dim, range(-x.dim(), x.dim()))
    _check.size(x.shape[dim] % 2 == 0, "input", f"of even size along dim {dim}", x)


def fake(x: Tensor, dim: int = -1) -> Tensor:
    """Shape of `input`, halved along `dim`."""
    _check_arguments(x, dim)
    shape = list(x.shape)
    shape[dim] = shape[dim] // 2
    return x.new_empty(shape)


def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    """silu(A) * B of the halves A, B of `input` [..., 2 H, ...] along `dim` -> [..., H, ...], dtype of `input`."""
    _check_arguments(x, dim)
    left, right = x.float().chunk(2, dim)
    return (torch.nn.functional.silu(left) * right).to(x.dtype)


OPERATOR = declare("npu_swiglu(Tensor input, int dim=-1) -> Tensor", fake=fake, fallback=swiglu, differentiable=True)
