"""`npu_fusion_attention_v3(query, key, value, head_num, input_layout, ...)`: `fusion_attention` for graphs, and its gradient.

actual_seq_qlen and actual_seq_kvlen are int64 tensors on the host, and so are seed and offset of dropout, which are returned; of a captured
graph the device has them, anew in each replay.
The number of scores is not returned. npu_fusion_attention_grad_v3 gives the gradients of query, key, value, pse and sink, of no
elements where one was not given.

Sources: the operator's page in the torch_npu documentation; op-plugin's FlashAttentionKernelNpuOpApi.cpp (outputs).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.attention.fusion_attention import INT_MAX
from moe_graph.operators.attention.training import Training, backward, forward
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check, _check_grad = Checks("npu_fusion_attention_v3"), Checks("npu_fusion_attention_grad_v3")


def fusion_attention_v3(
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
    actual_seq_qlen: Tensor | None = None,
    actual_seq_kvlen: Tensor | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    *,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the module's document says; seed and offset are no arguments of the operator. Raises ValueError on arguments that it excludes."""
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
        seed=seed,
        offset=offset,
    )
    return *forward(given), query.new_zeros(0), torch.tensor([seed]), torch.tensor([offset])


def fusion_attention_grad_v3(
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
    seed: Tensor | None = None,
    offset: Tensor | None = None,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Tensor | None = None,
    actual_seq_kvlen: Tensor | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
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
        seed=0 if seed is None else int(seed),
        offset=0 if offset is None else int(offset),
    )
    found = backward(given, dy, softmax_max, softmax_sum, attention_in)
    of_pse = query.new_zeros(0) if found["pse"] is None else found["pse"]
    of_sink = torch.zeros(0) if found["sink"] is None else found["sink"]
    return found["query"], found["key"], found["value"], of_pse, of_sink


OPERATOR = of_torch_npu("npu_fusion_attention_v3", fusion_attention_v3)
GRADIENT_OPERATOR = of_torch_npu("npu_fusion_attention_grad_v3", fusion_attention_grad_v3)
