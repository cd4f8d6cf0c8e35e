"""`npu_indexing(input, begin, end, strides, begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)`: a strided slice.

begin, end, strides: one entry an index, as in input[begin:end:stride, ...]; bit i of a mask says of the i-th, in this order:

    ellipsis_mask       it stands for `...` (at most one)        new_axis_mask   it is a new dimension of size 1
    shrink_axis_mask    begin alone counts, as an index: the dimension goes; its stride must be positive
    begin_mask, end_mask    that end is open

Bits beyond the entries do not count. Source: op-plugin's adapter and the NumPy expectations of its test; GE StridedSlice. torchair has no
converter. On Ascend 950 the adapter calls aclnnStridedSlice, on others an aclop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_indexing")
MOST_DIMENSIONS = 8


def sliced(x: Tensor, dimension: int, chosen: slice) -> Tensor:
    """x[..., chosen, ...] as NumPy has it, for strides below 0, too."""
    places = range(x.shape[dimension])[chosen]
    if chosen.step > 0:
        return x[(slice(None),) * dimension + (slice(places.start, places.stop, places.step),)]
    return x.index_select(dimension, torch.tensor(list(places), dtype=torch.int64))


def indexing(
    x: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    strides: Sequence[int],
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Tensor:
    """The slice, a copy. Raises ValueError for entries that do not fit each other or the input."""
    count = len(begin)
    if not count == len(end) == len(strides):
        _check.refuse("begin, end, strides", "of one length", f"{count}, {len(end)}, {len(strides)}")
    ellipses = [i for i in range(count) if ellipsis_mask >> i & 1]
    if len(ellipses) > 1:
        _check.refuse("ellipsis_mask", "of one bit at most", bin(ellipsis_mask))
    new = [i for i in range(count) if new_axis_mask >> i & 1 and i not in ellipses]
    taken = count - len(ellipses) - len(new)
    if taken > x.dim():
        _check.refuse("begin", f"of at most {x.dim()} entries that are not new dimensions", taken)
    dimension = 0  # of the tensor that is being made
    for i in range(count):
        if i in ellipses:
            dimension += x.dim() - dimension - (count - 1 - i) + sum(other > i for other in new)
        elif i in new:
            x = x.unsqueeze(dimension)
            dimension += 1
        elif shrink_axis_mask >> i & 1:
            if strides[i] <= 0:
                _check.refuse("strides", "positive where shrink_axis_mask is set", list(strides))
            if not -x.shape[dimension] <= begin[i] < x.shape[dimension]:
                _check.refuse("begin", f"within dimension {dimension} of size {x.shape[dimension]}", list(begin))
            x = x.select(dimension, begin[i])
        else:
            if strides[i] == 0:
                _check.refuse("strides", "other than 0", list(strides))
            first = None if begin_mask >> i & 1 else begin[i]
            last = None if end_mask >> i & 1 else end[i]
            x = sliced(x, dimension, slice(first, last, strides[i]))
            dimension += 1
    if x.dim() > MOST_DIMENSIONS:
        _check.refuse("the result", f"of at most {MOST_DIMENSIONS} dimensions", x.dim())
    return x.clone(memory_format=torch.contiguous_format)


def indexing_out(
    x: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    strides: Sequence[int],
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
    *,
    out: Tensor,
) -> Tensor:
    """The slice, written to `out`, which takes its shape."""
    masks = (begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)
    found = indexing(x, begin, end, strides, *masks)
    return out.resize_(found.shape).copy_(found)


OPERATOR = of_torch_npu("npu_indexing", indexing)
OUT_OPERATOR = of_torch_npu("npu_indexing.out", indexing_out)
