"""`npu_bmmV2(input, mat2, output_sizes)`: products of matrices, the dimensions before them broadcast; and their gradients.

A vector is a row on the left and a column on the right. With output_sizes, which a gradient has, what was broadcast is summed to that
shape; without it a vector's dimension is dropped, if the other operand has another number of dimensions.

Source: the operator's page in the torch_npu documentation, op-plugin's adapter. Float32 inside, rounded once. torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_bmmV2")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int32)


def bmm_v2(x: Tensor, mat2: Tensor, output_sizes: Sequence[int]) -> Tensor:
    """The products. Raises ValueError for a dtype that the document does not have."""
    _check.dtype("self", x, _DTYPES)
    _check.dtype("mat2", mat2, (x.dtype,))
    left, right = (x.unsqueeze(0) if x.dim() == 1 else x), (mat2.unsqueeze(1) if mat2.dim() == 1 else mat2)
    if x.dtype.is_floating_point:
        left, right = left.float(), right.float()
    y = left @ right
    if output_sizes:
        missing = [1] * (y.dim() - len(output_sizes))
        return y.sum_to_size(*missing, *output_sizes).reshape(*output_sizes).to(x.dtype)
    if x.dim() != mat2.dim():
        y = y.squeeze(-2) if x.dim() == 1 else y.squeeze(-1) if mat2.dim() == 1 else y
    return y.to(x.dtype)


def _as_matrices(grad: Tensor, mat1: Tensor, mat2: Tensor) -> Tensor:
    if mat1.dim() == 1:
        return grad.unsqueeze(-2)
    return grad.unsqueeze(-1) if mat2.dim() == 1 else grad


def mat1_backward(grad: Tensor, mat1: Tensor, mat2: Tensor, size: Sequence[int]) -> Tensor:
    """The gradient of the left operand, of this size."""
    right = mat2.unsqueeze(0) if mat2.dim() == 1 else mat2.transpose(-1, -2)
    return bmm_v2(_as_matrices(grad, mat1, mat2), right, size)


def mat2_backward(grad: Tensor, mat1: Tensor, mat2: Tensor, size: Sequence[int]) -> Tensor:
    """The gradient of the right operand, of this size."""
    left = mat1.unsqueeze(1) if mat1.dim() == 1 else mat1.transpose(-1, -2)
    sizes = [*size, 1] if mat2.dim() == 1 else size
    return bmm_v2(left, _as_matrices(grad, mat1, mat2), sizes).reshape(*size)


OPERATOR = of_torch_npu("npu_bmmV2", bmm_v2)
MAT1_BACKWARD_OPERATOR = of_torch_npu("npu_bmm_v2_mat1_backward", mat1_backward)
MAT2_BACKWARD_OPERATOR = of_torch_npu("npu_bmm_v2_mat2_backward", mat2_backward)
