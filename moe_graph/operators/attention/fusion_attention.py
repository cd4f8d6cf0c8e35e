"""`npu_fusion_attention(query, key, value, head_num, input_layout, ...)`: attention of training, and its gradient.

    query, key, value   float16, bfloat16, float32 in input_layout BSH, SBH, BSND, BNSD or TND (with actual_seq_qlen, actual_seq_kvlen:
                        where each sequence ends; 0 for those at the end that take no part); key and value may have fewer heads
    pse                 [B, N, Sq, Sk], [B, N, 1, Sk] or [1, N, Sq, Sk], added to the scores before scale; not in TND
    atten_mask          true where a key is hidden: [B, N, Sq, Sk], [B, 1, Sq, Sk], [1, 1, Sq, Sk], [Sq, Sk]; without it all keys are seen
    sparse_mode         0 to 4 as `masks` says; 5: the mask alone, which prefix made; 6: causal from the lower right corner and the first
                        prefix keys of each sequence, with the packed mask [3072, 2048]
    sink                [N] float32: a score for each head, without a value
    keep_prob           of dropout, by dropout_mask or, without it, by seed and offset; the simulated device takes its generator's for 0
    -> attention_out, softmax_max, softmax_sum (see `training`), an empty tensor, seed, offset, the number of pairs of query and key

npu_fusion_attention_grad takes dy and the forward's results and gives the gradients of query, key, value, pse and sink (none without
pse, no elements without sink). torch_npu differentiates the one by the other.

Not served: sparse_mode 7 and 8, compressed alibi. torchair lowers BSH and BNSD without dropout, and drops pse and sink on the way.

Sources: the operator's page in the torch_npu documentation; op-plugin's FlashAttentionKernelNpuOpApi.cpp (outputs); the order of packed
sums: the page and its test.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.attention.training import Training, backward, forward, pairs
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel

_check, _check_grad = Checks("npu_fusion_attention"), Checks("npu_fusion_attention_grad")
INT_MAX = 2147483647


def fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = INT_MAX,
    next_tockens: int = INT_MAX,
    inner_precise: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
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
        pre_tockens,
        next_tockens,
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
    )
    return *forward(given), query.new_zeros(0), seed, offset, pairs(given)


def fusion_attention_grad(
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
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = INT_MAX,
    next_tockens: int = INT_MAX,
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
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """dq, dk, dv, dpse, dsink, as the module's document says."""
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
        pre_tockens,
        next_tockens,
        inner_precise,
        prefix,
        actual_seq_qlen,
        actual_seq_kvlen,
        sparse_mode,
        softmax_layout,
        sink,
        seed=seed,
        offset=offset,
    )
    found = backward(given, dy, softmax_max, softmax_sum, attention_in)
    of_sink = torch.zeros(0) if found["sink"] is None else found["sink"]
    return found["query"], found["key"], found["value"], found["pse"], of_sink


def _ge_flash_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real_shift: Tensor | None = None,
    drop_mask: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    prefix: Tensor | None = None,
    actual_seq_qlen: Tensor | None = None,
    actual_seq_kvlen: Tensor | None = None,
    q_start_idx: Tensor | None = None,
    kv_start_idx: Tensor | None = None,
    *,
    head_num: int,
    input_layout: str,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = INT_MAX,
    next_tockens: int = INT_MAX,
    inner_precise: int = 1,
    sparse_mode: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GE FlashAttentionScore: softmax_max, softmax_sum, softmax_out, attention_out. The start indices are those of alibi."""
    _check.absent("drop_mask", drop_mask)
    lists = [None if x is None else x.tolist() for x in (prefix, actual_seq_qlen, actual_seq_kvlen)]
    output, largest, total, empty, *_ = fusion_attention(
        query,
        key,
        value,
        head_num,
        input_layout,
        real_shift,
        padding_mask,
        atten_mask,
        scale_value,
        keep_prob,
        pre_tockens,
        next_tockens,
        inner_precise,
        prefix=lists[0],
        actual_seq_qlen=lists[1],
        actual_seq_kvlen=lists[2],
        sparse_mode=sparse_mode,
    )
    return largest, total, empty, output


def _ge_flash_attention_score_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    pse_shift: Tensor | None = None,
    drop_mask: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    prefix: Tensor | None = None,
    actual_seq_qlen: Tensor | None = None,
    actual_seq_kvlen: Tensor | None = None,
    q_start_idx: Tensor | None = None,
    kv_start_idx: Tensor | None = None,
    *,
    head_num: int,
    input_layout: str,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 65536,
    next_tockens: int = 65536,
    inner_precise: int = 1,
    sparse_mode: int = 0,
) -> tuple[Tensor, ...]:
    """GE FlashAttentionScoreGrad: dq, dk, dv, dpse, the last of no elements without pse_shift."""
    _check_grad.absent("drop_mask", drop_mask)
    lists = [None if x is None else x.tolist() for x in (prefix, actual_seq_qlen, actual_seq_kvlen)]
    found = fusion_attention_grad(
        query,
        key,
        value,
        dy,
        head_num,
        input_layout,
        pse=pse_shift,
        padding_mask=padding_mask,
        atten_mask=atten_mask,
        softmax_max=softmax_max,
        softmax_sum=softmax_sum,
        softmax_in=softmax_in,
        attention_in=attention_in,
        scale_value=scale_value,
        keep_prob=keep_prob,
        pre_tockens=pre_tockens,
        next_tockens=next_tockens,
        inner_precise=inner_precise,
        prefix=lists[0],
        actual_seq_qlen=lists[1],
        actual_seq_kvlen=lists[2],
        sparse_mode=sparse_mode,
    )
    return tuple(query.new_zeros(0) if x is None else x for x in found[:4])


OPERATOR = of_torch_npu(
    "npu_fusion_attention", fusion_attention, ge=[GeKernel("FlashAttentionScore", _ge_flash_attention_score)]
)
GRADIENT_OPERATOR = of_torch_npu(
    "npu_fusion_attention_grad",
    fusion_attention_grad,
    ge=[GeKernel("FlashAttentionScoreGrad", _ge_flash_attention_score_grad)],
)
