"""`scatter_update(data, indices, updates, axis)` and `scatter_update_`: updates[i] put into data[i] from indices[i] of axis on.

    data [B, ...]   updates [b, ...], as data but for its first dimension and axis   indices [b] int32, int64: places in axis
    indices [b, 2]: (entry of data, place in axis)

Sources: the operator's page in the torch_npu documentation; GE Scatter. Out of range is an error here, unchecked on a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel


def write_windows(data: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """data, with updates[i] in a window of it along axis, in place. Raises ValueError where a window does not lie in data."""
    axis %= data.dim()
    if not axis:
        raise ValueError(f"axis must not be the first of {data.dim()} dimensions, which indices goes along")
    batch, start = indices.long().unbind(-1) if indices.dim() == 2 else (torch.arange(len(indices)), indices.long())
    length = updates.shape[axis]
    if len(start) and (int(start.min()) < 0 or int(start.max()) + length > data.shape[axis]):
        raise ValueError(
            f"indices must leave room for {length} in dimension {axis} of size {data.shape[axis]}, got {int(start.min())} to "
            f"{int(start.max())}"
        )
    places = start.unsqueeze(1) + torch.arange(length)
    data.movedim(axis, 1)[batch.unsqueeze(1), places] = updates.movedim(axis, 1)
    return data


def scatter_update(data: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """A copy of data with the updates."""
    return write_windows(data.clone(), indices, updates, axis)


def _ge_scatter(var: Tensor, indices: Tensor, updates: Tensor, *, reduce: str, axis: int = 0) -> Tensor:
    """GE Scatter assigns to its reference: torchair gives it a copy (TensorMove) where the program's operator leaves its input alone."""
    if reduce not in ("update", "none"):
        raise NotImplementedError(f"reduce must be update or none, got {reduce!r}")
    return write_windows(var, indices, updates, axis)


OPERATOR = of_torch_npu("scatter_update", scatter_update, ge=[GeKernel("Scatter", _ge_scatter, assigns=("var",))])
IN_PLACE_OPERATOR = of_torch_npu("scatter_update_", write_windows)
