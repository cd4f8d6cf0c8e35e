"""`npu_ring_attention_update(prev_attn_out, prev_softmax_max, prev_softmax_sum, cur_..., ...)`: attention over two parts made one.

    maximum = max of both    sum = sum_i * exp(max_i - maximum), of both    out = out_i * exp(max_i - maximum) * sum_i / sum, of both

    input_layout SBH   attn_out [S, B, N*D], softmax_max and softmax_sum [B, N, S, 8] float32
                 TND   attn_out [T, N, D], softmax_* [T, N, 8] with input_softmax_layout "TND"; actual_seq_qlen must be given
    -> attn_out (float16, bfloat16 or float32 as given), softmax_max, softmax_sum. The last size 8 holds one number eight times

In TND with input_softmax_layout "" or "SBH" the sums lie in another order, which no document says: refused. float32, rounded once.

Sources: the operator's docstring and its test in op-plugin; torch_npu's fake implementation. It has no lowering to GE.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_ring_attention_update")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def ring_attention_update(
    prev_attn_out: Tensor,
    prev_softmax_max: Tensor,
    prev_softmax_sum: Tensor,
    cur_attn_out: Tensor,
    cur_softmax_max: Tensor,
    cur_softmax_sum: Tensor,
    *,
    actual_seq_qlen: Tensor | None = None,
    input_layout: str = "SBH",
    input_softmax_layout: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """attn_out, softmax_max, softmax_sum, as the module's document says. Raises ValueError on arguments that it excludes."""
    _check.value("input_layout", input_layout, ("SBH", "TND"))
    if input_layout == "TND":
        _check.value("input_softmax_layout in TND", input_softmax_layout, ("TND",))
        if actual_seq_qlen is None:
            _check.refuse("actual_seq_qlen", "given in TND", None)
    _check.dtype("prev_attn_out", prev_attn_out, _FLOATS)
    _check.dtype("cur_attn_out", cur_attn_out, (prev_attn_out.dtype,))
    sums = (prev_softmax_max, prev_softmax_sum, cur_softmax_max, cur_softmax_sum)
    if cur_attn_out.shape != prev_attn_out.shape or any(x.shape != prev_softmax_max.shape for x in sums):
        _check.refuse("cur_attn_out and the sums", "like prev_attn_out and each other", tuple(cur_attn_out.shape))
    for x in sums:
        _check.dtype("softmax_max and softmax_sum", x, (torch.float32,))
    prev_max, prev_sum, cur_max, cur_sum = (x[..., 0] for x in sums)
    maximum = torch.maximum(prev_max, cur_max)
    shares = [(part - maximum).exp() * total for part, total in ((prev_max, prev_sum), (cur_max, cur_sum))]
    total = shares[0] + shares[1]

    def weighted(out: Tensor, share: Tensor) -> Tensor:
        factor = share / total
        if input_layout == "TND":
            return out.float() * factor.unsqueeze(-1)
        factor = factor.permute(2, 0, 1).unsqueeze(-1)  # [S, B, N, 1]
        return (out.float().unflatten(-1, (factor.shape[2], -1)) * factor).flatten(-2)

    out = weighted(prev_attn_out, shares[0]) + weighted(cur_attn_out, shares[1])
    maximum, total = (x.unsqueeze(-1).expand(*x.shape, 8).contiguous() for x in (maximum, total))
    return out.to(prev_attn_out.dtype), maximum, total


OPERATOR = of_torch_npu("npu_ring_attention_update", ring_attention_update)
