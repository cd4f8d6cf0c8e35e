"""`npu_slice(input, offsets, size)`: size[d] elements of each dimension d from offsets[d] on; a new tensor, or `out`.

Source: the operator's page in the torch_npu documentation. torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_slice")


def slice_(x: Tensor, offsets: Sequence[int], size: Sequence[int]) -> Tensor:
    """The part of x. Raises ValueError for one that x does not have."""
    fits = len(offsets) == len(size) == x.dim() and all(
        0 <= first and 0 <= count <= whole - first for first, count, whole in zip(offsets, size, x.shape)
    )
    if not fits:
        _check.refuse("offsets and size", f"a part of shape {tuple(x.shape)}", f"{list(offsets)} and {list(size)}")
    return x[tuple(slice(first, first + count) for first, count in zip(offsets, size))].clone()


def slice_out(x: Tensor, offsets: Sequence[int], size: Sequence[int], *, out: Tensor) -> Tensor:
    """The same in `out`, which must have its shape."""
    y = slice_(x, offsets, size)
    _check.size(out.shape == y.shape, "out", f"of shape {list(y.shape)}", out)
    return out.copy_(y)


OPERATOR = of_torch_npu("npu_slice", slice_)
OUT_OPERATOR = of_torch_npu("npu_slice.out", slice_out)
