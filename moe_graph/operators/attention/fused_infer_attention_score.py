"""`npu_fused_infer_attention_score(query, key, value, ...)`: attention of inference, whole prompts and single steps.

    attention_out = softmax(scale * query @ key^T + pse_shift, hidden where atten_mask says) @ value

    query           float16, bfloat16, or int8 with its scales; its layout is input_layout's first word, the output's is the second
    key, value      like query; int8, or int4 in int32, with antiquant scales; with block_table paged (see `paged`)
    input_layout    BSH, BSND, BNSD, NSD, TND, NTD and BNSD_BSND, BSH_BNSD, BSND_BNSD, BSH_NBSD, BSND_NBSD, BNSD_NBSD, TND_NTD, NTD_TND
    num_heads       N of query; num_key_value_heads K of key and value, 0: as many
    actual_seq_lengths, actual_seq_lengths_kv   valid rows of each sequence; in TND and NTD where each ends, but of paged keys its length
    sparse_mode, atten_mask, pre_tokens, next_tokens   see `masks`; a single query without rope and TND looks at modes 0 and 1 alone
    query_rope, key_rope   of MLA: further elements of each head, before the product
    key_shared_prefix, value_shared_prefix, actual_shared_prefix_len   keys and values that come before those of each sequence
    query_padding_size, kv_padding_size   rows behind the valid ones, which then end there (left padding), with the lengths given
    antiquant_* and key_antiquant_*, value_antiquant_*   see `quantized`
    dequant_scale1, quant_scale1, dequant_scale2   of int8 queries: on the scores, on exp(score - maximum) rounded to int8, on the output
    quant_scale2, quant_offset2   make the output int8

    -> attention_out: query's dtype (of int8 queries float16, with rope the rope's; with quant_scale2 int8)
       softmax_lse float32 with softmax_lse_flag, [B, N, S, 1] or packed [T, N, 1]; else of no elements

inner_precise is the device's choice between speed and precision, 0 to 3. Not served: key_rope_antiquant_scale, which is reserved.

Sources: the operator's page in the torch_npu documentation; shapes and dtypes of the outputs: torch_npu's fake implementation; the
log-sum-exp +inf of queries that see no key: the kernel of prompt_flash_attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.attention import layouts
from moe_graph.operators.attention.checks import (
    check_dtypes,
    check_heads,
    check_modes,
    combined,
    int8_products,
    separate,
    together,
)
from moe_graph.operators.attention.infer import INT_MAX, Inference, infer
from moe_graph.operators.attention.layouts import Lengths
from moe_graph.operators.attention.quantized import Quantization
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_fused_infer_attention_score")
LAYOUTS = (
    *("BSH", "BSND", "BNSD", "NSD", "TND", "NTD", "BNSD_BSND", "BSH_BNSD", "BSND_BNSD"),
    *("BSH_NBSD", "BSND_NBSD", "BNSD_NBSD", "TND_NTD", "NTD_TND"),
)
SPARSE_MODES = (0, 1, 2, 3, 4)


def fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Lengths | None = None,
    actual_seq_lengths_kv: Lengths | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    key_antiquant_scale: Tensor | None = None,
    key_antiquant_offset: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    value_antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    query_padding_size: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    key_shared_prefix: Tensor | None = None,
    value_shared_prefix: Tensor | None = None,
    actual_shared_prefix_len: Lengths | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    key_rope_antiquant_scale: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = INT_MAX,
    next_tokens: int = INT_MAX,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
) -> tuple[Tensor, Tensor]:
    """attention_out and softmax_lse, as the module's document says. Raises ValueError on arguments that it excludes."""
    check_heads(_check, "num_heads", num_heads, num_key_value_heads)
    check_modes(_check, sparse_mode, SPARSE_MODES, inner_precise)
    _check.absent("key_rope_antiquant_scale", key_rope_antiquant_scale, "which is reserved")
    together(_check, query_rope=query_rope, key_rope=key_rope)
    together(_check, key_shared_prefix=key_shared_prefix, value_shared_prefix=value_shared_prefix)
    quantized: tuple[Quantization | None, Quantization | None] = (None, None)
    if key_antiquant_scale is not None or value_antiquant_scale is not None:
        quantized = separate(
            _check,
            {"key_antiquant_scale": key_antiquant_scale, "value_antiquant_scale": value_antiquant_scale},
            (key_antiquant_offset, value_antiquant_offset),
            (key_antiquant_mode, value_antiquant_mode),
        )
    elif antiquant_scale is not None:
        quantized = combined(_check, antiquant_scale, antiquant_offset, antiquant_mode)
    scales = {"dequant_scale1": dequant_scale1, "quant_scale1": quant_scale1, "dequant_scale2": dequant_scale2}
    int8 = int8_products(_check, query, scales)
    output_dtype = query.dtype
    if int8 is not None:
        output_dtype = torch.float16 if query_rope is None else query_rope.dtype
    check_dtypes(_check, query, {"key": key, "value": value}, quantized)
    prefix = None
    if key_shared_prefix is not None and value_shared_prefix is not None:
        prefix = (key_shared_prefix, value_shared_prefix)
    return infer(
        Inference(
            _check,
            layouts.parse(_check, input_layout, LAYOUTS, query),
            query,
            key,
            value,
            num_heads,
            num_key_value_heads or num_heads,
            scale,
            actual_seq_lengths,
            actual_seq_lengths_kv,
            mask=atten_mask,
            bias=pse_shift,
            sparse_mode=sparse_mode,
            pre_tokens=pre_tokens,
            next_tokens=next_tokens,
            block_table=block_table,
            block_size=block_size,
            query_padding=query_padding_size,
            key_padding=kv_padding_size,
            prefix=prefix,
            prefix_length=actual_shared_prefix_len,
            query_rope=query_rope,
            key_rope=key_rope,
            key_quantization=quantized[0],
            value_quantization=quantized[1],
            int8=int8,
            output_scale=quant_scale2,
            output_offset=quant_offset2,
            output_dtype=output_dtype,
            want_lse=softmax_lse_flag,
        )
    )


OPERATOR = of_torch_npu("npu_fused_infer_attention_score", fused_infer_attention_score)
