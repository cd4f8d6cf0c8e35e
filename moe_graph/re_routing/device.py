"""The operator where a device's own kernel serves a part of the calls only: it does its part, the rest is composed around it.

Eagerly as the converter does in graph mode: the same calls are served in every mode. What the kernel of a product lacks says
`moe_graph.foundation.product`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import compat, contract, validation
from moe_graph.foundation.contract import MoeReRoutingOutput
from moe_graph.foundation.product import current_product, unsupported
from moe_graph.re_routing.fallback import take_rows

_PACKED = (contract.FLOAT4_E2M1, contract.FLOAT4_E1M2)  # two elements to a byte


def has_own_kernel(device: torch.device) -> bool:
    """Is there a kernel of the operator for this device alone (an NPU's), not the fallback?"""
    is_private = device.type == torch._C._get_privateuse1_backend_name()
    return is_private and torch._C._dispatch_has_kernel_for_dispatch_key(contract.QUALNAME, "PrivateUse1")


def re_routing(tokens: Tensor, expert_token_num_per_rank: Tensor, **arguments: Any) -> MoeReRoutingOutput:
    """`npu_moe_re_routing` with its keyword arguments, whatever the device's kernel lacks. Differentiable as the operator is.

    While torch.compile traces it is the operator itself: the converter composes.
    """
    if compat.is_compiling() or not has_own_kernel(tokens.device):
        return MoeReRoutingOutput(*contract.operator()(tokens, expert_token_num_per_rank, **arguments))
    return _around_the_kernel(tokens, expert_token_num_per_rank, **arguments)


def _around_the_kernel(
    tokens: Tensor,
    counts: Tensor,
    *,
    per_token_scales: Tensor | None = None,
    expert_token_num_type: int = contract.COUNT,
    idx_type: int = contract.GATHER,
    tokens_dtype: int | None = None,
) -> MoeReRoutingOutput:
    operator, scales = contract.operator(), per_token_scales
    asked: dict[str, Any] = dict(
        per_token_scales=scales,
        expert_token_num_type=expert_token_num_type,
        idx_type=idx_type,
        **({} if tokens_dtype is None else {"tokens_dtype": tokens_dtype}),
    )
    validation.check_arguments(tokens, counts, **asked)
    product = current_product()
    lacks = unsupported(product, tokens, **asked)
    hidden = tokens.shape[1] * (2 if tokens_dtype in _PACKED else 1)
    gathers_tokens = lacks.token_dtype or not product.fits(hidden)
    gathers = gathers_tokens or lacks.scales  # for that the kernel's index must be the gather index

    if gathers_tokens:
        asked.pop("tokens_dtype", None)
    if lacks.scales:
        asked["per_token_scales"] = None
    if gathers or lacks.scatter:
        asked["idx_type"] = contract.GATHER
    if lacks.cumsum:
        asked["expert_token_num_type"] = contract.COUNT
    small = tokens.new_zeros((tokens.shape[0], 1), dtype=torch.int8)  # in place of tokens, for the index
    outputs = MoeReRoutingOutput(*operator(small if gathers_tokens else tokens, counts, **asked))
    gather = outputs.permute_token_idx
    if gathers_tokens:
        outputs = outputs._replace(permute_tokens=take_rows(tokens, gather))
    if scales is not None and lacks.scales:
        outputs = outputs._replace(permute_per_token_scales=take_rows(scales, gather))
    if idx_type != asked["idx_type"]:
        inverse = operator(small, counts.t().contiguous())
        outputs = outputs._replace(permute_token_idx=inverse[2])
    if lacks.cumsum:
        num = outputs.expert_token_num
        outputs = outputs._replace(expert_token_num=num.cumsum(0, dtype=num.dtype))
    return outputs
