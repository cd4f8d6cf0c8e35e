"""`npu_quant_matmul_gelu(x1, x2, x1_scale, x2_scale, *, bias=None, approximate="gelu_erf")`: gelu of `quant_matmul`'s product of integers.

    x1 [..., M, K], x2 [..., K, N] int8; or int32, eight int4 in each along the last dimension
    x1_scale [M] float32   x2_scale [1] or [N] float32, bfloat16   bias int32, which is added before scaling, or floating point, after it
    -> bfloat16 if x2_scale or bias is, else float16   approximate gelu_erf, gelu_tanh

Sources: the operator's page in the torch_npu documentation, op-plugin's C++ (the result's dtype). Sums of integers are exact; scaling and
gelu are float32, rounded once. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.matmul.quant_matmul import compute

_check = Checks("npu_quant_matmul_gelu")
_TORCHS = {"gelu_erf": "none", "gelu_tanh": "tanh"}


def quant_matmul_gelu(
    x1: Tensor,
    x2: Tensor,
    x1_scale: Tensor,
    x2_scale: Tensor,
    *,
    bias: Tensor | None = None,
    approximate: str | None = "gelu_erf",
) -> Tensor:
    """As the module's document says. Raises ValueError on arguments that it excludes."""
    approximate = "gelu_erf" if approximate is None else approximate
    if approximate not in _TORCHS:
        _check.refuse("approximate", "'gelu_tanh' or 'gelu_erf'", repr(approximate))
    _check.dtype("x1", x1, (torch.int8, torch.int32))
    _check.dtype("x2", x2, (x1.dtype,))
    _check.dtype("x1_scale", x1_scale, (torch.float32,))
    _check.dtype("x2_scale", x2_scale, (torch.float32, torch.bfloat16))
    if tuple(x1_scale.shape) != (x1.shape[-2],):
        _check.refuse("x1_scale", f"of shape [{x1.shape[-2]}]", f"shape {tuple(x1_scale.shape)}")
    is_brain = torch.bfloat16 in (x2_scale.dtype, None if bias is None else bias.dtype)
    product = compute(x1, x2, x2_scale, None, x1_scale, bias, torch.float32)
    return F.gelu(product, approximate=_TORCHS[approximate]).to(torch.bfloat16 if is_brain else torch.float16)


OPERATOR = of_torch_npu("npu_quant_matmul_gelu", quant_matmul_gelu)
