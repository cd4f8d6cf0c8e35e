"""`npu_convert_weight_to_int4pack(weight, inner_k_tiles=0)`: int32 weights from -8 to 7 [..., N], eight of them in an int32 [..., N / 8].

Sources: the operator's page in the torch_npu documentation; op-plugin's C++: of each value the low four bits are kept. inner_k_tiles
is not used. torchair has no converter. Not served: float32 weights, which become float4 (Ascend 950).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.quantization import int4


def convert_weight_to_int4pack(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    """The packed weights. Raises ValueError if 8 does not divide N, NotImplementedError for another dtype than int32."""
    if weight.dtype != torch.int32:
        raise NotImplementedError(f"npu_convert_weight_to_int4pack: weight must be int32, got {weight.dtype}")
    return int4.packed(weight)


OPERATOR = of_torch_npu("npu_convert_weight_to_int4pack", convert_weight_to_int4pack)
