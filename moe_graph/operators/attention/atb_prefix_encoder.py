"""ATB's `npu_self_attention_prefix_encoder(query, key, value, block_tables, seqlen, kv_seqlen, ...)`: prompts behind a cached prefix.

    query [T, N, D] or [T, N*D] float16 or bfloat16, packed   key [blocks, block_size, K, D] or [..., K*D], value alike, paged
    block_tables [B, blocks] int32   seqlen, kv_seqlen: of each sequence the queries, its last tokens, and the keys; a multiple of 128 more
    -> like query; a query sees the keys up to its own place

Float32 inside, rounded once. Sources: op-plugin's docstring (op_plugin/python/atb/_atb_api_docs.py) and the golden function of its test.
Not served: other mask_type than mask_type_causal_mask, which the docstring does not support yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.attention import atb_masks
from moe_graph.operators.attention.atb_flash_attention import over_pages
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_self_attention_prefix_encoder")
_PREFIX_STEP = 128


def prefix_encoder_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_tables: Tensor,
    seqlen: Sequence[int],
    kv_seqlen: Sequence[int],
    q_headnum: int,
    qk_scale: float,
    kv_headnum: int,
    *,
    mask: Tensor | None = None,
    slopes: Tensor | None = None,
    mask_type: str | None = None,
    output: Tensor,
) -> Tensor:
    """`output`, which is written to. Raises ValueError on arguments that the module's document excludes."""
    _check.value("mask_type", mask_type, (None, "mask_type_causal_mask"))
    for name, given in (("mask", mask), ("slopes", slopes)):
        _check.absent(name, given, "with mask_type_causal_mask")
    if any((keys - queries) % _PREFIX_STEP for queries, keys in zip(seqlen, kv_seqlen)):
        _check.refuse("kv_seqlen", f"a multiple of {_PREFIX_STEP} more than seqlen", [list(seqlen), list(kv_seqlen)])
    caches = (key, value, block_tables)
    sizes = (qk_scale, q_headnum, kv_headnum)
    return over_pages(_check, query, *caches, seqlen, kv_seqlen, *sizes, output, atb_masks.CAUSAL)


def prefix_encoder(query: Tensor, *args: Any, **options: Any) -> Tensor:
    """The attention, a new tensor."""
    return prefix_encoder_out(query, *args, output=torch.empty_like(query), **options)


OPERATOR = of_torch_npu("npu_self_attention_prefix_encoder", prefix_encoder, namespace="atb")
OUT_OPERATOR = of_torch_npu("npu_self_attention_prefix_encoder.out", prefix_encoder_out, namespace="atb")
