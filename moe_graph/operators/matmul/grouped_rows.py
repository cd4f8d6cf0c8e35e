"""Products of int8 rows, group by group, as the fused operators of quantised experts share them.

A weight of int4 is multiplied in two steps on a device, with the high and the low four bits of x apart: x = 16 high + low + 8. The 8 is
what the "assist" of such a weight stands for, which is given with it: 8 * the sum of its scaled columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.matmul.products import exact_product
from moe_graph.operators.quantization import int4
from moe_graph.operators.quantization.int8 import check_values, is_running_sum
from moe_graph.operators.quantization.trans_quant_param import unpacked

CUMSUM, COUNT = 0, 1
_NZ_BLOCKS = {torch.int32: (16, 8)}  # eight int4 in each int32; of one byte it is (16, 32)
_MIDDLE = 8  # what the low four bits are moved by, to lie between -8 and 7


def segments(check: Checks, group_list: Tensor, kind: int, groups: int, rows: int) -> Iterator[tuple[int, slice]]:
    """(group, its rows), of a group_list of running sums (0) or sizes (1). Rows beyond the last group belong to none."""
    check.value("group_list_type", kind, (CUMSUM, COUNT))
    check.size(group_list.shape[0] == groups, "group_list", f"of E = {groups} groups", group_list)
    ends = group_list.cumsum(0) if kind == COUNT else group_list
    valid = is_running_sum(ends) & (ends[-1] <= rows)
    check_values(check, "group_list", group_list, valid, f"groups of x's {rows} rows")
    start = 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            yield group, slice(start, end)
        start = end


def of_nz(weight: Tensor) -> Tensor:
    """Matrices in the shape of the format NZ, [E, N / n, K / 16, 16, n], as [E, K, N]; others as they are. Elements of one byte, n = 32,
    or int32 with eight int4 in each, n = 8."""
    if weight.dim() != 5 or weight.shape[-2:] != _NZ_BLOCKS.get(weight.dtype, (16, 32)):
        return weight
    elements = weight if weight.dtype == torch.int32 else weight.view(torch.uint8)
    return elements.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2).view(weight.dtype)


def weights(check: Checks, name: str, weight: Tensor, depth: int) -> tuple[Tensor, bool]:
    """(int8 [E, K, N], is it int4) of weights of int8, of int32 with eight int4 each, or of int4 as the engine carries it.

    Weights of int8 and int32 may come in the shape of the format NZ, too."""
    if weight.dtype in (torch.int8, torch.int32):
        weight = of_nz(weight)
    if weight.dim() != 3:
        raise NotImplementedError(f"{name} must be of shape [E, K, N], got {tuple(weight.shape)}")
    check.dtype(name, weight, (torch.int8, torch.int32, torch.uint8))
    is_int4 = weight.dtype != torch.int8
    whole = int4.unpacked(weight) if weight.dtype == torch.int32 else int4.of_carrier(weight)
    check.size(whole.shape[1] == depth, name, f"of shape [E, K, N], K = {depth}", whole)
    return whole, is_int4


def scaled(x: Tensor, weight: Tensor, scale: Tensor, assist: Tensor | None, is_int4: bool) -> Tensor:
    """float32 [m, N]: x [m, K] @ weight [K, N] * scale [N], or [groups of K, N]; of int4 without the 8 that `assist` [N] brings."""
    parts = unpacked(scale)[0].reshape(-1, weight.shape[-1])
    if not is_int4:
        return exact_product(x, weight).float() * parts
    left = x.to(torch.int32) - _MIDDLE
    size = weight.shape[0] // len(parts)
    y = torch.zeros((len(x), weight.shape[-1]), dtype=torch.float32)
    for part, factors in enumerate(parts):
        columns = slice(part * size, (part + 1) * size)
        y += exact_product(left[:, columns], weight[columns]).float() * factors
    return y if assist is None else y + assist.float()
