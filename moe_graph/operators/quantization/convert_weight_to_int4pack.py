"""`npu_convert_weight_to_int4pack(weight, inner_k_tiles=0)`: weights of four bits, eight of [..., N] in each element of [..., N / 8].

    int32 from -8 to 7            as int4, in int32
    float32 (Ascend 950)          as float4_e2m1 in the bits of float32, cut after one bit of the mantissa; then no value: 0

Sources: the operator's page in the torch_npu documentation; op-plugin's C++: of each int32 the low four bits are kept, of each float32 the
first ten. inner_k_tiles is not used. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.quantization import int4, mx

_NAME = "npu_convert_weight_to_int4pack"
_FIRST_TEN_BITS = -(1 << 22)


def convert_weight_to_int4pack(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    """The packed weights. Raises ValueError if 8 does not divide N, NotImplementedError for another dtype."""
    if weight.dtype == torch.int32:
        return int4.packed(weight)
    if weight.dtype != torch.float32:
        raise NotImplementedError(f"{_NAME}: weight must be int32 or float32, got {weight.dtype}")
    mx.only_on_950(f"{_NAME} of float32")
    values = (weight.contiguous().view(torch.int32) & _FIRST_TEN_BITS).view(torch.float32)
    is_value = mx.rounded(values, mx.E2M1) == values
    codes = mx.encoded(torch.where(is_value, values, 0.0), mx.E2M1)
    return int4.packed(codes).view(torch.float32)


OPERATOR = of_torch_npu(_NAME, convert_weight_to_int4pack)
