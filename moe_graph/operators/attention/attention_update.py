"""`npu_attention_update(lse, local_out, update_type)`: attention over parts of the keys, computed apart, made one.

    lse         a list of [M] float32, the log-sum-exp of each part        local_out   of as many [M, D]
    total = log(sum of exp(lse_i))    out = sum of local_out_i * exp(lse_i - total)
    -> out [M, D] like local_out, total [M] float32, which the device fills with update_type 1 alone, and the reference always

A part with lse +inf has seen no key (npu_fused_infer_attention_score) and takes no share, its output is not looked at; of such parts alone
out is 0 and total +inf.

Sources: the operator's page in the torch_npu documentation; torch_npu's fake implementation (shapes); +inf: kernels of CANN's
ops-transformer, which set it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, Tensors

_check = Checks("npu_attention_update")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def attention_update(lse: list[Tensor], local_out: list[Tensor], update_type: int) -> tuple[Tensor, Tensor]:
    """out and total, as the module's document says. Raises ValueError on arguments that it excludes."""
    _check.value("update_type", update_type, (0, 1))
    if not lse or len(lse) != len(local_out):
        _check.refuse("lse and local_out", "of one length, at least 1", f"{len(lse)} and {len(local_out)}")
    for sum_of, out in zip(lse, local_out):
        _check.dtype("lse", sum_of, (torch.float32,))
        _check.dtype("local_out", out, (local_out[0].dtype,) if local_out[0].dtype in _FLOATS else _FLOATS)
        if sum_of.shape != lse[0].shape or out.shape != local_out[0].shape or out.shape[:-1] != sum_of.shape:
            _check.refuse(
                "lse and local_out", "[M] and [M, D], all alike", f"shapes {tuple(sum_of.shape)}, {tuple(out.shape)}"
            )
    sums = torch.stack(lse)
    sums = sums.masked_fill(sums.isposinf(), -torch.inf)
    total = sums.logsumexp(0)
    empty = total.isneginf()
    shares = (sums - total.masked_fill(empty, 0)).exp().unsqueeze(-1)
    out = torch.where(shares > 0, torch.stack(local_out).float() * shares, 0).sum(0).to(local_out[0].dtype)
    return out, total.masked_fill(empty, torch.inf)


def _ge_attention_update(lse: Tensors, go: Tensors, *, update_type: int, sp: int) -> tuple[Tensor, Tensor]:
    """GE AttentionUpdate; sp is how many parts there are."""
    if sp != len(lse):
        raise ValueError(f"sp must be {len(lse)}, the number of lse, got {sp}")
    return attention_update(lse, go, update_type)


OPERATOR = of_torch_npu(
    "npu_attention_update", attention_update, ge=[GeKernel("AttentionUpdate", _ge_attention_update)]
)
