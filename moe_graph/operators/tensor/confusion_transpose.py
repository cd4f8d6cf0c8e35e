"""`npu_confusion_transpose(input, perm, shape, transpose_first)`: a permutation and a view in one; and its gradient.

    transpose_first  y = input.permute(perm).reshape(shape)       otherwise  y = input.reshape(shape).permute(perm)

npu_confusion_transpose_backward undoes it: `shape` is the input's then, and transpose_first what the forward call had not. Source: the
operator's page in the torch_npu documentation, op-plugin's derivatives. torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu


def confusion_transpose(x: Tensor, perm: Sequence[int], shape: Sequence[int], transpose_first: bool) -> Tensor:
    """A new tensor."""
    y = x.permute(*perm).reshape(*shape) if transpose_first else x.reshape(*shape).permute(*perm)
    return y.clone(memory_format=torch.contiguous_format)


def confusion_transpose_backward(
    grad: Tensor, perm: Sequence[int], shape: Sequence[int], transpose_first: bool
) -> Tensor:
    """The gradient of the input, of this shape."""
    inverse = [list(perm).index(dim) for dim in range(len(perm))]
    sizes = list(shape) if transpose_first else [shape[dim] for dim in perm]
    return confusion_transpose(grad, inverse, sizes, transpose_first)


OPERATOR = of_torch_npu("npu_confusion_transpose", confusion_transpose)
BACKWARD_OPERATOR = of_torch_npu("npu_confusion_transpose_backward", confusion_transpose_backward)
