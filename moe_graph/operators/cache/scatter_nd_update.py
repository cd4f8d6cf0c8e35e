"""`npu_scatter_nd_update(input, indices, updates)` and `npu_scatter_nd_update_`, in place: updates assigned to input at indices.

    input [d0, d1, ...]   indices [..., a] int32, int64: places in the first a dimensions   updates [..., da, ...]

Where places repeat, one of the updates stays. Sources: the operator's page in the torch_npu documentation; GE ScatterNdUpdate. Out of
range is an error here, unchecked on a device.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel


def scatter_nd_update_(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """x with the updates, in place. Raises ValueError for shapes that do not fit, IndexError out of range."""
    depth = indices.shape[-1] if indices.dim() else 0
    if not 1 <= depth <= x.dim():
        raise ValueError(
            f"indices must have from 1 to {x.dim()} elements in its last dimension, got {list(indices.shape)}"
        )
    expected = (*indices.shape[:-1], *x.shape[depth:])
    if updates.shape != expected:
        raise ValueError(f"updates must have shape {list(expected)}, got {list(updates.shape)}")
    x[indices.long().unbind(-1)] = updates
    return x


def scatter_nd_update(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """A copy of x with the updates."""
    return scatter_nd_update_(x.clone(), indices, updates)


def _ge_scatter_nd_update(var: Tensor, indices: Tensor, updates: Tensor, *, use_locking: bool = False) -> Tensor:
    return scatter_nd_update_(var, indices, updates)


OPERATOR = of_torch_npu(
    "npu_scatter_nd_update",
    scatter_nd_update,
    ge=[GeKernel("ScatterNdUpdate", _ge_scatter_nd_update, assigns=("var",))],
)
IN_PLACE_OPERATOR = of_torch_npu("npu_scatter_nd_update_", scatter_nd_update_)
