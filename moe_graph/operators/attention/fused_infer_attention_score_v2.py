"""`npu_fused_infer_attention_score_v2(query, key, value, ...)`: `fused_infer_attention_score` under other names, and

    learnable_sink       [N] a score for each head, without a value: layouts TND, NTD and NTD_TND
    query_quant_mode 3   query of int8 with dequant_scale_query for each token and head, per-tensor scales of key and value, and rope
    sparse_mode 9        a tree of drafted tokens, with rope (see `masks`)

    num_query_heads num_heads   softmax_scale scale   actual_seq_qlen, actual_seq_kvlen actual_seq_lengths, _kv   return_softmax_lse
    dequant_scale_key, dequant_offset_key, key_quant_mode and those of value: key_antiquant_scale, ...   quant_scale_out quant_scale2

Of int8 queries the device rounds the probabilities to int8 and the reference does not: they differ by up to 1/254 of the largest value.
Not served: float8, float4 and hifloat8 (quant_scale_p is theirs); dequant_scale_key_rope, which is reserved.

Sources: as there, and this operator's page.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.attention import layouts
from moe_graph.operators.attention.checks import check_dtypes, check_heads, check_modes, separate, together
from moe_graph.operators.attention.fused_infer_attention_score import LAYOUTS, SPARSE_MODES, fused_infer_attention_score
from moe_graph.operators.attention.infer import INT_MAX, Inference, infer
from moe_graph.operators.attention.layouts import Lengths
from moe_graph.operators.attention.quantized import PER_TOKEN_HEAD, Quantization
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, Tensors

_check = Checks("npu_fused_infer_attention_score_v2")
_FLOATS = (torch.float16, torch.bfloat16)


def fused_infer_attention_score_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_qlen: Lengths | None = None,
    actual_seq_kvlen: Lengths | None = None,
    block_table: Tensor | None = None,
    dequant_scale_query: Tensor | None = None,
    dequant_scale_key: Tensor | None = None,
    dequant_offset_key: Tensor | None = None,
    dequant_scale_value: Tensor | None = None,
    dequant_offset_value: Tensor | None = None,
    dequant_scale_key_rope: Tensor | None = None,
    quant_scale_out: Tensor | None = None,
    quant_offset_out: Tensor | None = None,
    quant_scale_p: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    num_query_heads: int = 1,
    num_key_value_heads: int = 0,
    softmax_scale: float = 1.0,
    pre_tokens: int = INT_MAX,
    next_tokens: int = INT_MAX,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    block_size: int = 0,
    query_quant_mode: int = 0,
    key_quant_mode: int = 0,
    value_quant_mode: int = 0,
    inner_precise: int = 0,
    return_softmax_lse: bool = False,
    query_dtype: int | None = None,
    key_dtype: int | None = None,
    value_dtype: int | None = None,
    query_rope_dtype: int | None = None,
    key_rope_dtype: int | None = None,
    key_shared_prefix_dtype: int | None = None,
    value_shared_prefix_dtype: int | None = None,
    dequant_scale_query_dtype: int | None = None,
    dequant_scale_key_dtype: int | None = None,
    dequant_scale_value_dtype: int | None = None,
    dequant_scale_key_rope_dtype: int | None = None,
    out_dtype: int | None = None,
) -> tuple[Tensor, Tensor]:
    """attention_out and softmax_lse, as the module's document says. Raises ValueError on arguments that it excludes."""
    check_heads(_check, "num_query_heads", num_query_heads, num_key_value_heads)
    check_modes(_check, sparse_mode, (*SPARSE_MODES, 9), inner_precise)
    _check.absent("dequant_scale_key_rope", dequant_scale_key_rope, "which is reserved")
    _check.absent("quant_scale_p", quant_scale_p, "which is of float8")
    for name, number, x in (
        ("query_dtype", query_dtype, query),
        ("key_dtype", key_dtype, key),
        ("value_dtype", value_dtype, value),
    ):
        if number is not None and dtypes.from_number(number) != x.dtype:
            _check.refuse(name, f"None or {x.dtype}, the tensor's", dtypes.name(number))
    together(_check, query_rope=query_rope, key_rope=key_rope)
    if sparse_mode == 9 and query_rope is None:
        _check.refuse("sparse_mode", "not 9 without query_rope", 9)
    quantized: tuple[Quantization | None, Quantization | None] = (None, None)
    if dequant_scale_key is not None or dequant_scale_value is not None:
        quantized = separate(
            _check,
            {"dequant_scale_key": dequant_scale_key, "dequant_scale_value": dequant_scale_value},
            (dequant_offset_key, dequant_offset_value),
            (key_quant_mode, value_quant_mode),
        )
    is_int8 = query.dtype == torch.int8
    if is_int8:
        if dequant_scale_query is None or query_rope is None:
            _check.refuse("dequant_scale_query and query_rope", "given with a query of int8", "None")
        _check.value("query_quant_mode", query_quant_mode, (PER_TOKEN_HEAD,))
        _check.absent("quant_scale_out", quant_scale_out, "which a query of int8 excludes")
    else:
        _check.absent("dequant_scale_query", dequant_scale_query, "which is of queries of int8")
    check_dtypes(_check, query, {"key": key, "value": value}, quantized)
    output_dtype = query_rope.dtype if is_int8 and query_rope is not None else query.dtype
    if out_dtype is not None:
        wanted = torch.int8 if quant_scale_out is not None else output_dtype
        if dtypes.from_number(out_dtype) != wanted and not (is_int8 and dtypes.from_number(out_dtype) in _FLOATS):
            _check.refuse("out_dtype", f"None or {wanted}", dtypes.name(out_dtype))
        output_dtype = dtypes.from_number(out_dtype) or output_dtype
    layout = layouts.parse(_check, input_layout, LAYOUTS, query)
    if learnable_sink is not None and tuple(learnable_sink.shape) != (num_query_heads,):
        _check.refuse("learnable_sink", f"of shape [{num_query_heads}]", f"shape {tuple(learnable_sink.shape)}")
    return infer(
        Inference(
            _check,
            layout,
            query,
            key,
            value,
            num_query_heads,
            num_key_value_heads or num_query_heads,
            softmax_scale,
            actual_seq_qlen,
            actual_seq_kvlen,
            ("actual_seq_qlen", "actual_seq_kvlen"),
            mask=atten_mask,
            bias=pse_shift,
            sparse_mode=sparse_mode,
            pre_tokens=pre_tokens,
            next_tokens=next_tokens,
            block_table=block_table,
            block_size=block_size,
            query_rope=query_rope,
            key_rope=key_rope,
            sink=learnable_sink,
            query_scale=dequant_scale_query,
            key_quantization=quantized[0],
            value_quantization=quantized[1],
            output_scale=quant_scale_out,
            output_offset=quant_offset_out,
            output_scale_name="quant_scale_out",
            output_dtype=output_dtype,
            want_lse=return_softmax_lse,
        )
    )


def _ge_fused_infer_attention_score(
    query: Tensor,
    key: Tensors,
    value: Tensors,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Tensor | None = None,
    actual_seq_lengths_kv: Tensor | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    query_padding_size: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    key_antiquant_scale: Tensor | None = None,
    key_antiquant_offset: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    value_antiquant_offset: Tensor | None = None,
    key_shared_prefix: Tensor | None = None,
    value_shared_prefix: Tensor | None = None,
    actual_shared_prefix_len: Tensor | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    key_rope_antiquant_scale: Tensor | None = None,
    dequant_scale_query: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    q_start_idx: Tensor | None = None,
    kv_start_idx: Tensor | None = None,
    *,
    num_heads: int,
    scale: float = 1.0,
    pre_tokens: int = INT_MAX,
    next_tokens: int = INT_MAX,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    query_quant_mode: int = 0,
    pse_type: int = 0,
    out_dtype: int = 0,
) -> tuple[Tensor, Tensor]:
    """GE FusedInferAttentionScore, which both operators lower to: one tensor of keys, one of values."""
    if len(key) != 1 or len(value) != 1:
        raise ValueError(
            f"key and value must be one tensor each, got {len(key)} and {len(value)}: lists have no kernel"
        )
    if pse_type or q_start_idx is not None or kv_start_idx is not None:
        raise ValueError(
            f"pse_type must be 0 without start indices: pse_shift is added to the scaled scores, got {pse_type}"
        )
    shared: dict[str, Any] = {
        "query_rope": query_rope,
        "key_rope": key_rope,
        "pse_shift": pse_shift,
        "atten_mask": atten_mask,
        "block_table": block_table,
        "num_key_value_heads": num_key_value_heads,
        "pre_tokens": pre_tokens,
        "next_tokens": next_tokens,
        "input_layout": input_layout,
        "sparse_mode": sparse_mode,
        "block_size": block_size,
        "inner_precise": inner_precise,
    }
    if dequant_scale_query is not None or learnable_sink is not None or sparse_mode == 9:
        return fused_infer_attention_score_v2(
            query,
            key[0],
            value[0],
            **shared,
            actual_seq_qlen=actual_seq_lengths,
            actual_seq_kvlen=actual_seq_lengths_kv,
            dequant_scale_query=dequant_scale_query,
            dequant_scale_key=key_antiquant_scale,
            dequant_offset_key=key_antiquant_offset,
            dequant_scale_value=value_antiquant_scale,
            dequant_offset_value=value_antiquant_offset,
            quant_scale_out=quant_scale2,
            quant_offset_out=quant_offset2,
            learnable_sink=learnable_sink,
            num_query_heads=num_heads,
            softmax_scale=scale,
            query_quant_mode=query_quant_mode,
            key_quant_mode=key_antiquant_mode,
            value_quant_mode=value_antiquant_mode,
            return_softmax_lse=softmax_lse_flag,
            out_dtype=out_dtype or None,
        )
    return fused_infer_attention_score(
        query,
        key[0],
        value[0],
        **shared,
        actual_seq_lengths=actual_seq_lengths,
        actual_seq_lengths_kv=actual_seq_lengths_kv,
        dequant_scale1=dequant_scale1,
        quant_scale1=quant_scale1,
        dequant_scale2=dequant_scale2,
        quant_scale2=quant_scale2,
        quant_offset2=quant_offset2,
        antiquant_scale=antiquant_scale,
        antiquant_offset=antiquant_offset,
        query_padding_size=query_padding_size,
        kv_padding_size=kv_padding_size,
        key_antiquant_scale=key_antiquant_scale,
        key_antiquant_offset=key_antiquant_offset,
        value_antiquant_scale=value_antiquant_scale,
        value_antiquant_offset=value_antiquant_offset,
        key_shared_prefix=key_shared_prefix,
        value_shared_prefix=value_shared_prefix,
        actual_shared_prefix_len=actual_shared_prefix_len,
        key_rope_antiquant_scale=key_rope_antiquant_scale,
        num_heads=num_heads,
        scale=scale,
        antiquant_mode=antiquant_mode,
        key_antiquant_mode=key_antiquant_mode,
        value_antiquant_mode=value_antiquant_mode,
        softmax_lse_flag=softmax_lse_flag,
    )


OPERATOR = of_torch_npu(
    "npu_fused_infer_attention_score_v2",
    fused_infer_attention_score_v2,
    ge=[GeKernel("FusedInferAttentionScore", _ge_fused_infer_attention_score)],
)
