"""`npu_dtype_cast(self, dtype)` and its variants: the tensor in another dtype.

Source: the operator's page in the torch_npu documentation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu


def dtype_cast(x: Tensor, dtype: torch.dtype | int, *_: Any) -> Tensor:
    """A copy of x in `dtype`, a torch.dtype or torch's number for one. What follows it only a kernel of the NPU would use."""
    number = torch.ops.aten.empty([0], dtype=dtype).dtype if isinstance(dtype, int) else dtype
    return x.to(number, copy=True)


def dtype_cast_(x: Tensor, source: Tensor) -> Tensor:
    """`source` in the dtype of x, written to x."""
    return x.copy_(source)


OPERATOR = of_torch_npu("npu_dtype_cast", dtype_cast)
PRIVATE_OPERATOR = of_torch_npu("_npu_dtype_cast", dtype_cast)
BACKWARD_OPERATOR = of_torch_npu("npu_dtype_cast_backward", dtype_cast)
PRIVATE_BACKWARD_OPERATOR = of_torch_npu("_npu_dtype_cast_backward", dtype_cast)
IN_PLACE_OPERATOR = of_torch_npu("npu_dtype_cast_", dtype_cast_)
