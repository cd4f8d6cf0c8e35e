"""`npu_scatter_list(self, indices, updates, mask=None, reduce="update", axis=-2)` and `npu_scatter_list_`, in place.

    self: n tensors   updates [n, ...]   indices [n]: self[i] gets updates[i] from place indices[i] of axis on, where mask[i] is not 0
    indices [n, 2]: (place, length); only `length` places of updates[i] are written

Source: the document of ScatterList (ops-nn, index/scatter_list) and op-plugin's test. axis is counted from the end.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, Tensors, renamed


def _written(
    tensors: Tensors, indices: Tensor, updates: Tensor, mask: Tensor | None, reduce: str, axis: int
) -> Tensors:
    if reduce != "update" or axis >= 0:
        raise NotImplementedError(f"reduce must be update and axis negative, got {reduce!r} and {axis}")
    if not len(tensors) == len(indices) == len(updates):
        raise ValueError(f"indices and updates must have {len(tensors)} entries, got {len(indices)} and {len(updates)}")
    chosen = [True] * len(tensors) if mask is None else mask.bool().tolist()
    lengths = [updates.shape[axis]] * len(tensors) if indices.dim() == 1 else indices[:, 1].tolist()
    places = indices.tolist() if indices.dim() == 1 else indices[:, 0].tolist()
    for tensor, place, length, update, wanted in zip(tensors, places, lengths, updates, chosen):
        if wanted:
            tensor.narrow(axis, place, length).copy_(update.narrow(axis, 0, length))
    return tensors


def scatter_list_(
    tensors: Tensors,
    indices: Tensor,
    updates: Tensor,
    mask: Tensor | None = None,
    reduce: str = "update",
    axis: int = -2,
) -> None:
    """The updates, written to the tensors."""
    _written(tensors, indices, updates, mask, reduce, axis)


def scatter_list(
    tensors: Tensors,
    indices: Tensor,
    updates: Tensor,
    mask: Tensor | None = None,
    reduce: str = "update",
    axis: int = -2,
) -> Tensors:
    """Copies of the tensors with the updates."""
    return _written([tensor.clone() for tensor in tensors], indices, updates, mask, reduce, axis)


OPERATOR = of_torch_npu(
    "npu_scatter_list",
    scatter_list,
    ge=[GeKernel("ScatterList", renamed(scatter_list, var="tensors", indice="indices"))],
)
IN_PLACE_OPERATOR = of_torch_npu("npu_scatter_list_", scatter_list_)
