"""`npu_fusion_attention_v2(query, key, value, head_num, input_layout, ...)`: `fusion_attention` with two things more, and its gradient.

    query_rope, key_rope   further elements of each head, before the product
    pse_type               1: scale * (query @ key^T + pse), 0: scale * query @ key^T + pse

pse_type 2 and 3, for which the device makes alibi from slopes and start indices, are not served. npu_fusion_attention_grad_v2 gives the
gradients of query, key, value, pse (no elements without it), query_rope, key_rope (none without them), sink (no elements without it).

Sources: the document of aclnnFlashAttentionScoreV2 (pse_type); op-plugin's FlashAttentionV2KernelNpuOpApi.cpp (outputs).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.attention.fusion_attention import INT_MAX
from moe_graph.operators.attention.training import Training, backward, forward, pairs
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check, _check_grad = Checks("npu_fusion_attention_v2"), Checks("npu_fusion_attention_grad_v2")


def fusion_attention_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tokens: int = INT_MAX,
    next_tokens: int = INT_MAX,
    inner_precise: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    pse_type: int = 1,
    q_start_idx: Sequence[int] | None = None,
    kv_start_idx: Sequence[int] | None = None,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """As the module's document says. Raises ValueError on arguments that it excludes."""
    given = Training(
        _check,
        query,
        key,
        value,
        head_num,
        input_layout,
        pse,
        padding_mask,
        atten_mask,
        scale,
        keep_prob,
        pre_tokens,
        next_tokens,
        inner_precise,
        prefix,
        actual_seq_qlen,
        actual_seq_kvlen,
        sparse_mode,
        softmax_layout,
        sink,
        dropout_mask,
        seed,
        offset,
        pse_type,
        query_rope,
        key_rope,
    )
    return *forward(given), query.new_zeros(0), seed, offset, pairs(given)


def fusion_attention_grad_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tokens: int = INT_MAX,
    next_tokens: int = INT_MAX,
    inner_precise: int = 0,
    seed: int = 0,
    offset: int = 0,
    numels: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    pse_type: int = 1,
    q_start_idx: Sequence[int] | None = None,
    kv_start_idx: Sequence[int] | None = None,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """dq, dk, dv, dpse, dq_rope, dk_rope, dsink, as the module's document says."""
    given = Training(
        _check_grad,
        query,
        key,
        value,
        head_num,
        input_layout,
        pse,
        padding_mask,
        atten_mask,
        scale_value,
        keep_prob,
        pre_tokens,
        next_tokens,
        inner_precise,
        prefix,
        actual_seq_qlen,
        actual_seq_kvlen,
        sparse_mode,
        softmax_layout,
        sink,
        None,
        seed,
        offset,
        pse_type,
        query_rope,
        key_rope,
    )
    found = backward(given, dy, softmax_max, softmax_sum, attention_in)
    of_pse = query.new_zeros(0) if found["pse"] is None else found["pse"]
    of_sink = torch.zeros(0) if found["sink"] is None else found["sink"]
    return found["query"], found["key"], found["value"], of_pse, found["query_rope"], found["key_rope"], of_sink


OPERATOR = of_torch_npu("npu_fusion_attention_v2", fusion_attention_v2)
GRADIENT_OPERATOR = of_torch_npu("npu_fusion_attention_grad_v2", fusion_attention_grad_v2)
