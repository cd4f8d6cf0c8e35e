"""`npu_anti_quant(x, scale, *, offset=None, dst_dtype=None, src_dtype=None)`: (x + offset) * scale.

    x [..., H] int8, or int32 [..., H / 8], eight int4 in each   scale, offset [1] or [H] float32, bfloat16   -> [..., H] float16 (None)
    or bfloat16

Source: the operator's page in the torch_npu documentation. Computed in float32, rounded once. Not served: the types of Ascend 950.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization import destination, int4

_RESULTS = (torch.float16, torch.bfloat16)


def _scaled(x: Tensor, scale: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    values = x.float() if offset is None else x.float() + offset.float()
    return (values * scale.float()).to(dtype)


def anti_quant(
    x: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    dst_dtype: int | None = None,
    src_dtype: int | None = None,
) -> Tensor:
    """As the module's document says. Raises ValueError for src_dtype that is not x's, NotImplementedError for a type not served."""
    dtype = torch.float16 if dst_dtype is None else dtypes.from_number(dst_dtype)
    if dtype not in _RESULTS:
        raise NotImplementedError(f"npu_anti_quant: dst_dtype must be float16 or bfloat16, got {dst_dtype}")
    allowed = {torch.int8: (destination.INT8_NUMBER,), torch.int32: destination.INT4_NUMBERS}.get(x.dtype)
    if allowed is None:
        raise NotImplementedError(f"npu_anti_quant: x must be int8, or int32 of int4, got {x.dtype}")
    if src_dtype is not None and src_dtype not in allowed:
        raise ValueError(f"npu_anti_quant: src_dtype must be one of {allowed} for x of {x.dtype}, got {src_dtype}")
    assert dtype is not None
    return _scaled(int4.unpacked(x) if x.dtype == torch.int32 else x, scale, offset, dtype)


def _ge_ascend_anti_quant_v2(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    dst_type: GeType = 1,  # type: ignore[assignment]
    sqrt_mode: bool = False,
) -> Tensor:
    """GE AscendAntiQuantV2, of int8 and int4."""
    if sqrt_mode:
        raise NotImplementedError("AscendAntiQuantV2: sqrt_mode must be false, as torchair writes it")
    return _scaled(int4.of_carrier(x), scale, offset, dst_type.torch)


OPERATOR = of_torch_npu("npu_anti_quant", anti_quant, ge=[GeKernel("AscendAntiQuantV2", _ge_ascend_anti_quant_v2)])
