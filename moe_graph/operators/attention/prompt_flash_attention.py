"""`npu_prompt_flash_attention(query, key, value, ...)`: attention over whole prompts, the older operator of `fused_infer_attention_score`.

    query, key, value   float16, bfloat16, or all int8 with deq_scale1, quant_scale1, deq_scale2; input_layout BSH, BSND, BNSD,
                        BNSD_BSND, NSD or TND
    pre_tokens, next_tokens (0 by default), sparse_mode, atten_mask   see `masks`; without a mask sparse_mode 0 hides nothing
    sparse_mode 10 to 14   0 to 4 with the device's high precision
    quant_scale2, quant_offset2   make the output int8
    -> attention_out in the layout's second word, query's dtype (of int8 queries float16, with quant_scale2 int8)

All else as there. padding_mask is reserved. Sources: the operator's page in the torch_npu documentation; sparse modes from 10 on:
torchair's converter; the output's shape and dtype: torch_npu's fake implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.attention import layouts
from moe_graph.operators.attention.checks import check_dtypes, check_heads, check_modes, int8_products
from moe_graph.operators.attention.infer import INT_MAX, Inference, infer
from moe_graph.operators.attention.layouts import Lengths
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel

_check = Checks("npu_prompt_flash_attention")
LAYOUTS = ("BSH", "BSND", "BNSD", "BNSD_BSND", "NSD", "TND")
_PRECISE = 10


def prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    pse_shift: Tensor | None = None,
    actual_seq_lengths: Lengths | None = None,
    deq_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    deq_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    pre_tokens: int = INT_MAX,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    actual_seq_lengths_kv: Lengths | None = None,
    sparse_mode: int = 0,
) -> Tensor:
    """attention_out, as the module's document says. Raises ValueError on arguments that it excludes."""
    _check.absent("padding_mask", padding_mask, "which is reserved")
    check_heads(_check, "num_heads", num_heads, num_key_value_heads)
    check_modes(_check, sparse_mode, (*range(5), *range(_PRECISE, _PRECISE + 5)), 0)
    check_dtypes(_check, query, {"key": key, "value": value}, (None, None))
    scales = {"deq_scale1": deq_scale1, "quant_scale1": quant_scale1, "deq_scale2": deq_scale2}
    output, _ = infer(
        Inference(
            _check,
            layouts.parse(_check, input_layout, LAYOUTS, query),
            query,
            key,
            value,
            num_heads,
            num_key_value_heads or num_heads,
            scale_value,
            actual_seq_lengths,
            actual_seq_lengths_kv,
            mask=atten_mask,
            bias=pse_shift,
            sparse_mode=sparse_mode % _PRECISE,
            pre_tokens=pre_tokens,
            next_tokens=next_tokens,
            int8=int8_products(_check, query, scales),
            output_scale=quant_scale2,
            output_offset=quant_offset2,
            output_dtype=torch.float16 if query.dtype == torch.int8 else query.dtype,
            prompt=True,
        )
    )
    return output


def _ge_prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Tensor | None = None,
    actual_seq_lengths_kv: Tensor | None = None,
    deq_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    deq_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    *,
    num_heads: int,
    scale_value: float = 1.0,
    pre_tokens: int = 214748647,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 1,
    sparse_mode: int = 0,
    inner_precise: int = 1,
) -> Tensor:
    """GE PromptFlashAttention."""
    _check.value("inner_precise", inner_precise, range(4))
    return prompt_flash_attention(
        query,
        key,
        value,
        atten_mask=atten_mask,
        pse_shift=pse_shift,
        actual_seq_lengths=actual_seq_lengths,
        deq_scale1=deq_scale1,
        quant_scale1=quant_scale1,
        deq_scale2=deq_scale2,
        quant_scale2=quant_scale2,
        quant_offset2=quant_offset2,
        num_heads=num_heads,
        scale_value=scale_value,
        pre_tokens=pre_tokens,
        next_tokens=next_tokens,
        input_layout=input_layout,
        num_key_value_heads=num_key_value_heads,
        actual_seq_lengths_kv=actual_seq_lengths_kv,
        sparse_mode=sparse_mode,
    )


OPERATOR = of_torch_npu(
    "npu_prompt_flash_attention",
    prompt_flash_attention,
    ge=[GeKernel("PromptFlashAttention", _ge_prompt_flash_attention)],
)
