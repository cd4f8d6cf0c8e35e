"""`npu_transpose(input, perm, require_contiguous=True)`: input's dimensions in the order of perm; contiguous, or `out`.

Source: the operator's page in the torch_npu documentation. torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_transpose")


def transpose(x: Tensor, perm: Sequence[int], require_contiguous: bool = True) -> Tensor:
    """A new tensor. Raises ValueError if perm does not name each dimension once."""
    if sorted(dim % max(x.dim(), 1) for dim in perm) != list(range(x.dim())):
        _check.refuse("perm", f"each of {x.dim()} dimensions once", list(perm))
    return x.permute(*perm).contiguous()


def transpose_out(x: Tensor, perm: Sequence[int], require_contiguous: bool = True, *, out: Tensor) -> Tensor:
    """The same in `out`, which must have its shape."""
    y = transpose(x, perm)
    _check.size(out.shape == y.shape, "out", f"of shape {list(y.shape)}", out)
    return out.copy_(y)


OPERATOR = of_torch_npu("npu_transpose", transpose)
OUT_OPERATOR = of_torch_npu("npu_transpose.out", transpose_out)
