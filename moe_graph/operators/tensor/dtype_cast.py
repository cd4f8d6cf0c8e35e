"""`npu_dtype_cast(self, dtype, input_dtype=None)` and its variants: the tensor in another dtype.

dtype and input_dtype may be torch_npu's numbers for types that torch lacks: hifloat8, whose tensors are uint8; float4_e2m1fn_x2,
float4_e1m2fn_x2 and, as dtype, int4, two of which are a byte of uint8 [..., K / 2]. How they are rounded says `quantization.elements`.

Sources: the operator's page in the torch_npu documentation; its fake implementation for the types that torch lacks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.quantization import elements, int4


def dtype_cast(x: Tensor, dtype: torch.dtype | int, input_dtype: int | None = None) -> Tensor:
    """A copy of x in `dtype`, a torch.dtype or torch's or torch_npu's number for one; input_dtype: what x's bytes are."""
    source = elements.NAMES.get(input_dtype, "") if input_dtype is not None else ""
    carried = int4.of_bytes(x) if source in elements.FOUR_BITS else x
    values = elements.values_of(carried, source)
    target = elements.NAMES.get(dtype, "") if isinstance(dtype, int) else ""
    if not target or target == "DT_FLOAT8_E8M0":
        return values.to(_torch_dtype(dtype), copy=True)
    made = elements.of_values(values, target, torch.uint8)
    if target not in elements.FOUR_BITS:
        return made
    if made.dim() == 0 or made.shape[-1] % 2:
        raise ValueError(f"npu_dtype_cast: the last dimension must be even to become {target}, got {list(x.shape)}")
    return int4.in_bytes(made)


def _torch_dtype(dtype: torch.dtype | int) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    named = {291: "float8_e5m2", 292: "float8_e4m3fn", 293: "float8_e8m0fnu"}.get(dtype)
    return getattr(torch, named) if named else torch.ops.aten.empty([0], dtype=dtype).dtype


def dtype_cast_(x: Tensor, source: Tensor) -> Tensor:
    """`source` in the dtype of x, written to x."""
    return x.copy_(source)


def dtype_cast_backward(
    grad: Tensor, dtype: torch.dtype | int, grad_dtype: int | None = None, input_dtype: int | None = None
) -> Tensor:
    """The gradient in the dtype that the tensor had: input_dtype if it is given. grad_dtype: what the gradient's bytes are."""
    return dtype_cast(grad, dtype if input_dtype is None else input_dtype, grad_dtype)


OPERATOR = of_torch_npu("npu_dtype_cast", dtype_cast)
PRIVATE_OPERATOR = of_torch_npu("_npu_dtype_cast", dtype_cast)
BACKWARD_OPERATOR = of_torch_npu("npu_dtype_cast_backward", dtype_cast_backward)
PRIVATE_BACKWARD_OPERATOR = of_torch_npu("_npu_dtype_cast_backward", dtype_cast)
IN_PLACE_OPERATOR = of_torch_npu("npu_dtype_cast_", dtype_cast_)
