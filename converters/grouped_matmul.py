"""torchair converter of `npu_grouped_matmul`: torchair's own, but for two forms that it cannot lower.

For one x and a list of outputs torchair does not find how many outputs the GroupedMatmul node has. There x is split first, and the
products are those of separate tensors (group_type -1):

    group_list of integers, split_item 0 or 1      x split along its rows by the list's differences
    group_type 2, split_item 0 or 1                x split along its columns by the weights' first sizes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import DataType, Tensor

from moe_graph.converters import ge_helpers


def convert_grouped_matmul(
    x: Sequence[Tensor], weight: Sequence[Tensor], meta_outputs: Any = None, **keywords: Any
) -> Any:
    """Lower the operator; the keyword arguments are those of either overload, `meta_outputs` is as in the re-routing's."""
    from torchair._ge_concrete_graph.ge_converter.custom.grouped_matmul import conveter_npu_npu_grouped_matmul

    listed = keywords.get("group_list")
    if keywords.get("split_item", 0) in (0, 1):
        if isinstance(listed, (list, tuple)):
            if len(x) == 1:
                sizes = [stop - start for start, stop in zip([0, *listed], listed)]
                x = _split(x[0], sizes, ge_helpers.int64s(*sizes, -1), 0)
            keywords.update(group_list=None, group_type=-1)
        elif keywords.get("group_type") == 2:
            every = [*map(ge_helpers.shape, weight), ge_helpers.int64s(-1)]
            splits = ge.ConcatV2(every, ge.Const(0, dtype=DataType.DT_INT64), N=len(every))
            x = _split(
                x[0], [matrix.meta.shape[0] for matrix in weight], ge_helpers.typed(splits, DataType.DT_INT64), 1
            )
            keywords.update(group_type=-1)
    return conveter_npu_npu_grouped_matmul(x, weight, **keywords)


def _split(x: Tensor, sizes: Sequence[int | torch.SymInt], splits: Tensor, dim: int) -> list[Tensor]:
    """Pieces of x of these sizes along `dim`; `splits` has them, too, and the rest."""
    pieces = ge.SplitV(x, splits, ge.Const(dim, dtype=DataType.DT_INT32), num_split=len(sizes) + 1)
    for piece, size in zip(pieces, sizes):
        piece.set_meta(x.meta.new_empty([*x.meta.shape[:dim], size, *x.meta.shape[dim + 1 :]]))
    ge_helpers.typed(pieces[-1], x.dtype)
    return pieces[: len(sizes)]
