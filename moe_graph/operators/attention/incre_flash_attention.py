"""`npu_incre_flash_attention(query, key, value, ...)`: attention of one query of each sequence, the older operator for single steps.

    query           float16 or bfloat16, input_layout BSH, BNSD or BSND with S = 1
    key, value      like query, or int8 with antiquant_scale and antiquant_offset (`quantized`), whole or paged (`paged`)
    atten_mask      [B, S], [B, 1, S] or [B, 1, 1, S] of the keys, true where one is hidden
    pse_shift       [B or 1, N, 1, S], added to the scores
    actual_seq_lengths   the keys' lengths; kv_padding_size   rows behind the last key (left padding)
    quant_scale2, quant_offset2   make the output int8
    -> attention_out, query's shape and dtype

All else as in `fused_infer_attention_score`. padding_mask is reserved; dequant_scale1, quant_scale1 and dequant_scale2 are of int8 queries,
which the device does not take here. Source: the operator's page in the torch_npu documentation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.attention import layouts
from moe_graph.operators.attention.checks import Pair, check_dtypes, check_heads, check_modes, combined
from moe_graph.operators.attention.infer import Inference, infer
from moe_graph.operators.attention.layouts import Lengths
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, Tensors

_check = Checks("npu_incre_flash_attention")


def incre_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    pse_shift: Tensor | None = None,
    actual_seq_lengths: Lengths | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    block_size: int = 0,
    inner_precise: int = 1,
) -> Tensor:
    """attention_out, as the module's document says. Raises ValueError on arguments that it excludes."""
    _check.absent("padding_mask", padding_mask, "which is reserved")
    for name, scale in (
        ("dequant_scale1", dequant_scale1),
        ("quant_scale1", quant_scale1),
        ("dequant_scale2", dequant_scale2),
    ):
        _check.absent(name, scale, "which is of queries of int8")
    check_heads(_check, "num_heads", num_heads, num_key_value_heads)
    check_modes(_check, 0, (0,), inner_precise)
    quantized: Pair = (None, None)
    if antiquant_scale is not None:
        quantized = combined(_check, antiquant_scale, antiquant_offset, 0)
    if query.dtype == torch.int8:
        _check.dtype("query", query, (torch.float16, torch.bfloat16))
    check_dtypes(_check, query, {"key": key, "value": value}, quantized)
    layout = layouts.parse(_check, input_layout, ("BSH", "BNSD", "BSND"), query)
    if query.shape[layout.given.index("S")] != 1:
        _check.refuse("query", "of one row for each sequence", f"shape {tuple(query.shape)} in {input_layout}")
    output, _ = infer(
        Inference(
            _check,
            layout,
            query,
            key,
            value,
            num_heads,
            num_key_value_heads or num_heads,
            scale_value,
            key_lengths=actual_seq_lengths,
            lengths_names=("", "actual_seq_lengths"),
            mask=atten_mask,
            bias=pse_shift,
            block_table=block_table,
            block_size=block_size,
            key_padding=kv_padding_size,
            key_quantization=quantized[0],
            value_quantization=quantized[1],
            output_scale=quant_scale2,
            output_offset=quant_offset2,
        )
    )
    return output


def _ge_incre_flash_attention(
    query: Tensor,
    key: Tensors,
    value: Tensors,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Tensor | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    *,
    num_heads: int,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 1,
    block_size: int = 0,
    inner_precise: int = 1,
) -> Tensor:
    """GE IncreFlashAttention: one tensor of keys, one of values."""
    if len(key) != 1 or len(value) != 1:
        raise ValueError(
            f"key and value must be one tensor each, got {len(key)} and {len(value)}: lists have no kernel"
        )
    return incre_flash_attention(
        query,
        key[0],
        value[0],
        atten_mask=atten_mask,
        pse_shift=pse_shift,
        actual_seq_lengths=actual_seq_lengths,
        antiquant_scale=antiquant_scale,
        antiquant_offset=antiquant_offset,
        block_table=block_table,
        dequant_scale1=dequant_scale1,
        quant_scale1=quant_scale1,
        dequant_scale2=dequant_scale2,
        quant_scale2=quant_scale2,
        quant_offset2=quant_offset2,
        kv_padding_size=kv_padding_size,
        num_heads=num_heads,
        scale_value=scale_value,
        input_layout=input_layout,
        num_key_value_heads=num_key_value_heads,
        block_size=block_size,
        inner_precise=inner_precise,
    )


OPERATOR = of_torch_npu(
    "npu_incre_flash_attention",
    incre_flash_attention,
    ge=[GeKernel("IncreFlashAttention", _ge_incre_flash_attention)],
)
