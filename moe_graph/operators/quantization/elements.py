"""Values of the types that torch lacks, or knows as bytes: hifloat8, float4, int4, float8_e8m0, by their names in GE.

`carried` tensors have one element in each uint8, as the host engine has them; torch_npu hands types of four bits over two to a byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.quantization import hifloat8, int4, mx

_FLOAT4 = {form.ge: form for form in mx.FLOAT4}
INT4 = "DT_INT4"
FOUR_BITS = (INT4, *_FLOAT4)
NAMES = {285: INT4, 290: hifloat8.GE_NAME, 293: "DT_FLOAT8_E8M0", 296: mx.E2M1.ge, 297: mx.E1M2.ge}
"""torch_npu's number -> the name in GE."""


def values_of(carried: Tensor, name: str) -> Tensor:
    """Elements of the type as numbers that torch computes with: float32, int8; another type's tensor as it is."""
    if name == hifloat8.GE_NAME:
        return hifloat8.decoded(carried)
    if name in _FLOAT4:
        return mx.decoded(carried, _FLOAT4[name])
    if name == INT4:
        return int4.of_carrier(carried)
    if name == "DT_FLOAT8_E8M0":
        return mx.power(carried.view(torch.uint8)).float()
    return carried


def of_values(values: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """Numbers as elements of the type, carried; `dtype` is the one that carries a type which torch has.

    Halves go to even, those of hifloat8 away from zero. Too large a number becomes infinity in hifloat8, the largest in float4; int4 keeps
    the four lower bits of what lies toward zero."""
    if name == hifloat8.GE_NAME:
        return hifloat8.encoded(values.float(), saturate=False)
    if name in _FLOAT4:
        return mx.encoded(values.float(), _FLOAT4[name])
    if name == INT4:
        return int4.carried(values.to(torch.int32).to(torch.int8))
    return values.to(dtype)
