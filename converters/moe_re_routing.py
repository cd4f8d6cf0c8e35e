"""torchair converter of `npu_moe_re_routing`.

One `MoeReRouting` node where the kernel of the product lowered for serves the call; otherwise the same result from nodes it does serve:

    cumsum mode             a Cumsum behind the count
    scatter index           the gather index of the inverse, which is a small re-routing with transposed counts
    dtype of the tokens     their bytes travel as a dtype the kernel has (Bitcast there and back)
    H beyond the limit      GatherV2 with the index of a small re-routing
    scales                  GatherV2 with the gather index

A small re-routing moves one int8 per token instead of the tokens; only its index is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import DataType, Tensor

from moe_graph.converters import decisions, ge_helpers
from moe_graph.converters.ge_helpers import Carrier
from moe_graph.foundation import contract, validation
from moe_graph.foundation.product import Product, Unsupported, current_product, unsupported

# The named tuple serves GE tensors as well: only the names matter.
_Outputs = contract.MoeReRoutingOutput

# Members of torchair's DataType, by name, for an older torchair may lack them. E8M0: of 2.1 to 2.6.
_E8M0 = "DT_FLOAT8_E8M0"
# A torchair that lacks these comes with a torch_npu that has no tokens_dtype.
_TOKENS_TYPES = {
    contract.HIFLOAT8: "DT_HIFLOAT8",
    contract.FLOAT4_E2M1: "DT_FLOAT4_E2M1",
    contract.FLOAT4_E1M2: "DT_FLOAT4_E1M2",
}


def convert_moe_re_routing(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    *,
    per_token_scales: Tensor | None = None,
    expert_token_num_type: int = contract.COUNT,
    idx_type: int = contract.GATHER,
    tokens_dtype: int | None = None,
    meta_outputs: Any = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower the operator. Outputs have the shapes and dtypes of the fake implementation; A may be symbolic.

    `meta_outputs` is for the torchair of torch_npu 2.5, which hands the outputs' shapes to later converters only if this one takes it.

    Raises ValueError as `moe_graph.foundation.validation.check_arguments` does, and for tokens of torch.float4_e2m1fn_x2: torchair
    describes those to GE with half of their elements.
    """
    attributes: dict[str, Any] = dict(
        per_token_scales=None if per_token_scales is None else per_token_scales.meta,
        expert_token_num_type=expert_token_num_type,
        idx_type=idx_type,
        tokens_dtype=tokens_dtype,
    )
    validation.check_arguments(tokens.meta, expert_token_num_per_rank.meta, **attributes)
    _check_described_whole(tokens.meta)
    product = current_product()
    lacks = unsupported(product, tokens.meta, **attributes)
    carrier = _carrier(tokens.meta, tokens_dtype, lacks)
    fits = product.fits(tokens.meta.shape[1] * (1 if carrier is None else carrier.ratio))

    # The rows that the kernel cannot move are gathered, and for that its index must be the gather index.
    gathered = lacks.scales or (_are_e8m0_bytes(per_token_scales) and not hasattr(DataType, _E8M0))
    node_idx_type = contract.GATHER if lacks.scatter or gathered or not fits else idx_type
    node_scales = None if gathered else per_token_scales
    decisions.tell("npu_moe_re_routing", product.name, _reasons(tokens.meta, product, lacks, fits, gathered))
    if fits:
        outputs = _re_routing(tokens, carrier, expert_token_num_per_rank, node_scales, node_idx_type)
    else:
        outputs = _small_re_routing(tokens, expert_token_num_per_rank, node_scales)
        outputs = outputs._replace(permute_tokens=ge_helpers.take_rows(tokens, outputs.permute_token_idx))
    if gathered:
        scales = ge_helpers.take_rows(per_token_scales, outputs.permute_token_idx)
        outputs = outputs._replace(permute_per_token_scales=scales)
    if idx_type != node_idx_type:
        inverse = _small_re_routing(tokens, ge_helpers.transposed(expert_token_num_per_rank))
        outputs = outputs._replace(permute_token_idx=inverse.permute_token_idx)
    if lacks.cumsum:
        outputs = outputs._replace(expert_token_num=ge_helpers.inclusive_sum(outputs.expert_token_num))
    return outputs


def _reasons(tokens: torch.Tensor, product: Product, lacks: Unsupported, fits: bool, gathered: bool) -> list[str]:
    """Why the call is more than one node."""
    possible = {
        f"its kernel has no {tokens.dtype} tokens, their bytes travel as another type": lacks.token_dtype,
        f"H = {tokens.shape[1]} is not below its kernel's limit of {product.max_hidden}": not fits,
        "its kernel has no such per_token_scales": gathered,
        "its kernel has no scatter index (idx_type=1)": lacks.scatter,
        "its kernel has no running sum (expert_token_num_type=0)": lacks.cumsum,
    }
    return [reason for reason, holds in possible.items() if holds]


def _check_described_whole(tokens: torch.Tensor) -> None:
    if tokens.dtype == getattr(torch, "float4_e2m1fn_x2", None):
        raise ValueError(
            f"tokens must not be {tokens.dtype} in graph mode: torchair tells GE that a row has {tokens.shape[1]} float4 elements, and it "
            f"has twice as many. Give tokens.view(torch.uint8) with tokens_dtype={contract.FLOAT4_E2M1}"
        )


def _carrier(tokens: torch.Tensor, tokens_dtype: int | None, lacks: Unsupported) -> Carrier | None:
    """What the tokens travel as; None: as they are."""
    if lacks.token_dtype:
        # Two bytes at a time, so that more of them fit below the limit of H.
        width = tokens.element_size()
        return Carrier(DataType.DT_INT8, 1) if width == 1 else Carrier(DataType.DT_FLOAT16, width // 2)
    if tokens_dtype is not None:
        packed = tokens_dtype in (contract.FLOAT4_E2M1, contract.FLOAT4_E1M2)
        return Carrier(getattr(DataType, _TOKENS_TYPES[tokens_dtype]), 2 if packed else 1)
    return None


def _re_routing(
    tokens: Tensor, carrier: Carrier | None, counts: Tensor, scales: Tensor | None, idx_type: int
) -> _Outputs:
    """A re-routing of the tokens themselves, inside their carrier if they need one."""
    if carrier is None:
        return _node(tokens, counts, scales, idx_type)
    outputs = _node(carrier.wrap(tokens), counts, scales, idx_type)
    return outputs._replace(permute_tokens=carrier.unwrap(outputs.permute_tokens, tokens))


def _small_re_routing(tokens: Tensor, counts: Tensor, scales: Tensor | None = None) -> _Outputs:
    """A re-routing of [A, 1] int8 zeros in place of the tokens, for its gather index, counts and scales."""
    small = ge_helpers.zeros(ge_helpers.shape(tokens, 1), DataType.DT_INT8)
    return _node(small, counts, scales, contract.GATHER)


def _are_e8m0_bytes(scales: Tensor | None) -> bool:
    """float8_e8m0 scales stored as uint8."""
    return scales is not None and scales.meta.dtype == torch.uint8


def _node(tokens: Tensor, counts: Tensor, scales: Tensor | None, idx_type: int) -> _Outputs:
    """The MoeReRouting node itself, in count mode, its output descriptors carrying the dtypes of its inputs."""
    node_scales: Any = scales
    if _are_e8m0_bytes(scales):
        node_scales = ge_helpers.bitcast(scales, getattr(DataType, _E8M0))
    outputs: Any = _Outputs(
        *ge.MoeReRouting(tokens, counts, node_scales, expert_token_num_type=contract.COUNT, idx_type=idx_type)
    )
    outputs.permute_tokens.desc.dtype = tokens.desc.dtype
    outputs.expert_token_num.desc.dtype = counts.desc.dtype
    ge_helpers.typed(outputs.permute_token_idx, DataType.DT_INT32)
    if scales is None:
        ge_helpers.typed(outputs.permute_per_token_scales, DataType.DT_FLOAT)
        return outputs
    outputs.permute_per_token_scales.desc.dtype = node_scales.desc.dtype
    if node_scales is scales:
        return outputs
    bytes_again = ge_helpers.bitcast(outputs.permute_per_token_scales, ge_helpers.ge_dtype(scales.meta))
    return outputs._replace(permute_per_token_scales=bytes_again)
