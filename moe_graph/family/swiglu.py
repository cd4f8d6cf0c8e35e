"""`npu_swiglu(self, dim=-1)`: the halves of `self` along `dim` are A and B; the result is silu(A) * B.

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


def _check_arguments(self: Tensor, dim: int) -> None:
    """Raise ValueError unless `self` is floating point and has an even size along `dim`."""
    _check.dtype("self", self, DTYPES)
    _check.value("dim", dim, range(-self.dim(), self.dim()))
    _check.size(self.shape[dim] % 2 == 0, "self", f"of even size along dim {dim}", self)


def fake(self: Tensor, dim: int = -1) -> Tensor:
    """Shape of `self`, halved along `dim`."""
    _check_arguments(self, dim)
    shape = list(self.shape)
    shape[dim] = shape[dim] // 2
    return self.new_empty(shape)


def swiglu(self: Tensor, dim: int = -1) -> Tensor:
    """silu(A) * B of the halves A, B of `self` [..., 2 H, ...] along `dim` -> [..., H, ...], dtype of `self`."""
    _check_arguments(self, dim)
    left, right = self.float().chunk(2, dim)
    return (torch.nn.functional.silu(left) * right).to(self.dtype)


OPERATOR = declare("npu_swiglu(Tensor self, int dim=-1) -> Tensor", fake=fake, fallback=swiglu, differentiable=True)
