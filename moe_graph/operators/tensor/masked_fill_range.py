"""`npu_masked_fill_range(input, start, end, value, axis=-1)`: value[i] at the places from start[i, j] up to end[i, j] of axis.

    input [...] of one to three dimensions   start, end [loops, n] whole numbers   value [loops] like input

With one index j for all rows, or along the last axis of more than one dimension j is the row: start[i, j] is row j's. Loops come one after
another. Source: the reference of op-plugin's test of the operator, its adapter for the checks. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_masked_fill_range")


def masked_fill_range(x: Tensor, start: Tensor, end: Tensor, value: Tensor, axis: int = -1) -> Tensor:
    """A filled copy. Raises ValueError for arguments that do not fit."""
    _check.rank("self", x, (1, 2, 3), "of one to three dimensions")
    _check.rank("start", start, (2,), "[loops, n]")
    _check.size(end.shape == start.shape, "end", f"of start's shape {list(start.shape)}", end)
    _check.size(value.shape == start.shape[:1], "value", f"of shape [loops] = [{len(start)}]", value)
    _check.dtype("value", value, (x.dtype,))
    _check.value("axis", axis, range(-x.dim(), x.dim()))
    axis %= x.dim()
    by_row = x.dim() > 1 and axis == x.dim() - 1
    rows = x.shape[0] if by_row else 1
    if by_row:
        _check.size(start.shape[1] <= rows, "start", f"of shape [loops, n], n <= {rows}, the rows", start)
    places = torch.arange(x.shape[axis])
    y = x.clone()
    for low, high, filling in zip(start, end, value):
        inside = (places >= low.unsqueeze(1)) & (places < high.unsqueeze(1))  # [n, places]
        if by_row:
            shape = (len(low), *[1] * (x.dim() - 2), len(places))
            y[: len(low)] = torch.where(inside.view(shape), filling, y[: len(low)])
        else:
            shape = (*[1] * axis, len(places), *[1] * (x.dim() - axis - 1))
            y = torch.where(inside.any(0).view(shape), filling, y)
    return y


OPERATOR = of_torch_npu("npu_masked_fill_range", masked_fill_range)
