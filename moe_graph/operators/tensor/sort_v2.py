"""`npu_sort_v2(input, dim=-1, descending=False)`: the elements in rising or falling order along dim, without their indices.

Source: the operator's page in the torch_npu documentation; that names the last dimension alone, op-plugin's adapter serves each.
torchair has no converter.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu


def sort_v2(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    """The sorted elements, a new tensor."""
    return x.sort(dim, descending).values


def sort_v2_out(x: Tensor, dim: int = -1, descending: bool = False, *, out: Tensor) -> Tensor:
    """The same in `out`, resized to input's shape."""
    return out.resize_(x.shape).copy_(sort_v2(x, dim, descending))


OPERATOR = of_torch_npu("npu_sort_v2", sort_v2)
OUT_OPERATOR = of_torch_npu("npu_sort_v2.out", sort_v2_out)
