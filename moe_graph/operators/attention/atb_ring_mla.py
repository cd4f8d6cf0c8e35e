"""ATB's `npu_ring_mla(q_nope, q_rope, k_nope, k_rope, value, mask, seqlen, ...)`: MLA's attention of prompts, joined to that over others.

    q_nope [T, N, D], q_rope [T, N, R]   k_nope [Tk, K, D], k_rope [Tk, K, R]   value [Tk, K, Dv]   float16 or bfloat16, packed sequences
    seqlen [B], the lengths of queries and keys, or [2, B], those of queries and those of keys; a tensor of the host
    mask_type   no_mask, or mask_type_triu: query i sees the keys up to i, both counted from the start of the sequence; mask, the upper
                triangle of [512, 512], is read then
    calc_type   calc_type_first_ring, or calc_type_default: joined to pre_out [T, N, Dv], the attention over other keys, and prev_lse [N, T]
    -> output [T, N, Dv] like q_nope, softmax_lse [N, T] float32: the logarithm of the sum of e^score. A sequence without keys gets 0, 0

Float32 inside, rounded once; kernel_type chooses among the kernels' ways to round and is not looked at otherwise.

Sources: op-plugin's docstring (op_plugin/python/atb/_atb_api_docs.py), C++ (defaults) and the golden function of its test, which tells what
mask_type_triu is. Not served: a sequence without keys that is joined to others, of which the golden function forgets the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_graph.operators.attention import atb_masks, layouts
from moe_graph.operators.attention.core import attend_with_sums, log_sum
from moe_graph.operators.attention.layouts import Packed
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_ring_mla")


def ring_mla(
    q_nope: Tensor,
    q_rope: Tensor,
    k_nope: Tensor,
    k_rope: Tensor,
    value: Tensor,
    mask: Tensor,
    seqlen: Tensor,
    head_num: int,
    kv_head_num: int,
    *,
    pre_out: Tensor | None = None,
    prev_lse: Tensor | None = None,
    qk_scale: float = 1.0,
    kernel_type: str | None = None,
    mask_type: str | None = None,
    input_layout: str | None = None,
    calc_type: str | None = None,
) -> tuple[Tensor, Tensor]:
    """output and softmax_lse, as the module's document says. Raises ValueError on arguments that it excludes."""
    _check.value("kernel_type", kernel_type, (None, "kernel_type_default", "kernel_type_high_precision"))
    _check.value("mask_type", mask_type, (None, "no_mask", "mask_type_triu"))
    _check.value("input_layout", input_layout, (None, "type_bsnd"))
    _check.value("calc_type", calc_type, (None, "calc_type_first_ring", "calc_type_default"))
    joins = calc_type == "calc_type_default"
    _check.dtype("q_nope", q_nope, (torch.float16, torch.bfloat16))
    for name, tensor in (("q_rope", q_rope), ("k_nope", k_nope), ("k_rope", k_rope), ("value", value)):
        _check.dtype(name, tensor, (q_nope.dtype,))
    lengths = seqlen if seqlen.dim() == 2 else torch.stack((seqlen, seqlen))
    _check.rank("seqlen", seqlen, (1, 2), "[B] or [2, B]")
    rows, columns = (
        Packed(_check, "seqlen", of.cumsum(0).tolist(), len(tensor)) for of, tensor in zip(lengths, (q_nope, k_nope))
    )
    if joins and bool((columns.lengths == 0).any()):
        raise NotImplementedError("npu_ring_mla: seqlen of 0 keys with calc_type_default is not served")
    places = torch.arange(columns.widest)
    allowed = (places < columns.lengths[:, None])[:, None, None]
    if mask_type == "mask_type_triu":
        atb_masks.check_triangle(_check, mask)
        allowed = allowed & (places <= torch.arange(rows.widest)[:, None])
    q, k, v = (
        layouts.to_bnsd(_check, name, tensor, "TND", heads, packed).float()
        for name, tensor, heads, packed in (
            ("q_nope", torch.cat((q_nope, q_rope), -1), head_num, rows),
            ("k_nope", torch.cat((k_nope, k_rope), -1), kv_head_num, columns),
            ("value", value, kv_head_num, columns),
        )
    )
    output, largest, total = attend_with_sums(q, k, v, qk_scale, allowed, None)
    lse = log_sum(largest, total).masked_fill(largest.isneginf(), 0)
    output, lse = (layouts.from_bnsd(x, "TND", rows) for x in (output, lse))
    if joins:
        output, lse = _joined(output, lse, pre_out, prev_lse)
    return output.to(q_nope.dtype), lse.squeeze(-1).t().contiguous()


def _joined(output: Tensor, lse: Tensor, pre_out: Tensor | None, prev_lse: Tensor | None) -> tuple[Tensor, Tensor]:
    """[T, N, Dv] and [T, N, 1] of both sets of keys together."""
    if pre_out is None or prev_lse is None:
        _check.refuse("pre_out and prev_lse", "given with calc_type_default", None)
    shape = (lse.shape[1], lse.shape[0])
    if pre_out.shape != output.shape or tuple(prev_lse.shape) != shape:
        wanted = f"of shapes {list(output.shape)} and {list(shape)}"
        _check.refuse("pre_out and prev_lse", wanted, f"shapes {tuple(pre_out.shape)} and {tuple(prev_lse.shape)}")
    before = prev_lse.float().t().unsqueeze(-1)
    joined = torch.logaddexp(before, lse)
    return pre_out.float() * (before - joined).exp() + output * (lse - joined).exp(), joined


def ring_mla_out(*args: Any, output: Tensor, softmax_lse: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The same, written to output and softmax_lse."""
    for target, made in zip((output, softmax_lse), ring_mla(*args, **options)):
        target.copy_(made)
    return output, softmax_lse


OPERATOR = of_torch_npu("npu_ring_mla", ring_mla, namespace="atb")
OUT_OPERATOR = of_torch_npu("npu_ring_mla.out", ring_mla_out, namespace="atb")
