"""`npu_pad(input, paddings)`: zeros around input; paddings are pairs (before, after) from the first dimension on, missing ones 0.

Source: the operator's page in the torch_npu documentation; op-plugin's adapter for the order. torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_pad")


def pad(x: Tensor, paddings: Sequence[int]) -> Tensor:
    """The padded tensor. Raises ValueError for a negative padding, or more than two a dimension."""
    if len(paddings) > 2 * x.dim() or min(paddings, default=0) < 0:
        _check.refuse("paddings", f"at most {2 * x.dim()} numbers of at least 0", list(paddings))
    pairs = [*paddings, *[0] * (2 * x.dim() - len(paddings))]
    before, after = pairs[::2], pairs[1::2]
    y = x.new_zeros([size + first + last for size, first, last in zip(x.shape, before, after)])
    y[tuple(slice(first, first + size) for first, size in zip(before, x.shape))] = x
    return y


OPERATOR = of_torch_npu("npu_pad", pad)
