"""`npu_gelu_mul(input, *, approximate="none")`: gelu of the first half of the last dimension, times the second.

    input [..., 2 * D] float16, bfloat16, float32 -> [..., D]   approximate  "none": by the error function, "tanh"

Source: the operator's page in the torch_npu documentation. Float32 inside, rounded once. torchair has no converter.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_gelu_mul")


def gelu_mul(x: Tensor, *, approximate: str = "none") -> Tensor:
    """As the module's document says. Raises ValueError for another approximation, or an odd last dimension."""
    _check.value("approximate", approximate, ("none", "tanh"))
    _check.size(x.shape[-1] % 2 == 0, "input", "of an even last dimension", x)
    one, two = x.float().chunk(2, -1)
    return (functional.gelu(one, approximate=approximate) * two).to(x.dtype)


OPERATOR = of_torch_npu("npu_gelu_mul", gelu_mul)
