"""The contract of `npu_moe_re_routing`: names, schema, attribute values, outputs.

Source: the operator's page in the torch_npu documentation, its schema in torch_npu 2.7.1 and 2.11 to 2.14, and the behaviour of the
CANN kernel `aclnnMoeReRouting`. Symbols, here and everywhere in the package:

    A  tokens received by this rank        N  source ranks
    H  length of a token                   E  experts on this rank
    S  scales per token

The source holds chunks (r, e) in rank-major order; the destination holds them in expert-major order, inside an expert by rank, inside
a chunk in the order of arrival. `sum(expert_token_num_per_rank) == A`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NAMESPACE = "npu"
NAME = "npu_moe_re_routing"
QUALNAME = f"{NAMESPACE}::{NAME}"
SCHEMA = (
    f"{NAME}(Tensor tokens, Tensor expert_token_num_per_rank, *, Tensor? per_token_scales=None, "
    "int expert_token_num_type=1, int idx_type=0, int? tokens_dtype=None) -> (Tensor, Tensor, Tensor, Tensor)"
)
GE_TYPE = "MoeReRouting"

# expert_token_num_type: what the fourth output holds.
CUMSUM, COUNT = 0, 1
# idx_type: permute_tokens[d] = tokens[idx[d]], or permute_tokens[idx[s]] = tokens[s].
GATHER, SCATTER = 0, 1

# tokens_dtype: the type of tokens that are stored as uint8, by the numbers torch_npu gives to types torch lacks.
HIFLOAT8, FLOAT4_E2M1, FLOAT4_E1M2 = 290, 296, 297
TOKENS_DTYPES = {HIFLOAT8: "hifloat8", FLOAT4_E2M1: "float4_e2m1fn_x2", FLOAT4_E1M2: "float4_e1m2fn_x2"}

COUNT_DTYPES = (torch.int32, torch.int64)
INDEX_DTYPE = torch.int32
MAX_TOKENS = torch.iinfo(INDEX_DTYPE).max
# The second output when no scales are given: [A] of this dtype. The kernel leaves the values undefined, this package writes zeros.
DEFAULT_SCALES_DTYPE = torch.float32


class MoeReRoutingOutput(NamedTuple):
    """The four outputs under their documented names.

    Attributes:
        permute_tokens: like tokens [A, H]
        permute_per_token_scales: like per_token_scales, or float32 [A] without meaning when none were given
        permute_token_idx: int32 [A], gather or scatter index
        expert_token_num: [E], dtype of expert_token_num_per_rank: tokens per expert, or their inclusive running sum
    """

    permute_tokens: Tensor
    permute_per_token_scales: Tensor
    permute_token_idx: Tensor
    expert_token_num: Tensor


class MoeUnRoutingOutput(NamedTuple):
    """Tokens and scales back in source-rank order.

    Attributes:
        tokens: [A, H]
        per_token_scales: of the shape that was given, None when none were
    """

    tokens: Tensor
    per_token_scales: Tensor | None


def operator() -> torch._ops.OpOverload:
    """The operator now in force, torch_npu's or ours. Looked up at each call: loading torch_npu replaces it."""
    return torch.ops.npu.npu_moe_re_routing.default
