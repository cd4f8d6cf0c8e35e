"""`npu_top_k_top_p(logits, p=None, k=None)`: logits of which only the k largest stay, and of these the most probable that p reaches.

    logits [B, V] floating point   p [B] of logits' dtype, from 0 to 1   k [B] int32, from 1 to V   -> like logits, -inf where filtered

    k: below the k-th largest is filtered; equal ones stay   p: in ascending order (stable), where the running sum of probabilities is at
    most 1 - p is filtered; the largest stays

Source: the operator's page in the torch_npu documentation. Probabilities and their sum are float32. torchair has no converter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.quantization.int8 import check_values

_check = Checks("npu_top_k_top_p")


def top_k_top_p(logits: Tensor, p: Tensor | None = None, k: Tensor | None = None) -> Tensor:
    """The filtered logits. Raises ValueError for another shape, and for k and p out of range."""
    _check.rank("logits", logits, (2,), "[B, V]")
    rows, words = logits.shape
    values, order = logits.sort(dim=-1, stable=True)
    if k is not None:
        _check.size(k.shape == (rows,), "k", f"of shape [B], B = {rows}", k)
        check_values(_check, "k", k, ((k >= 1) & (k <= words)).all(), f"from 1 to V = {words}")
        least = values.gather(1, (words - k.long()).unsqueeze(1))
        values = values.masked_fill(values < least, -torch.inf)
    if p is not None:
        _check.size(p.shape == (rows,), "p", f"of shape [B], B = {rows}", p)
        check_values(_check, "p", p, ((p >= 0) & (p <= 1)).all(), "from 0 to 1")
        reached = values.float().softmax(-1).cumsum(-1)
        filtered = reached <= 1 - p.float().unsqueeze(1)
        filtered[:, -1] = False
        values = values.masked_fill(filtered, -torch.inf)
    return torch.empty_like(logits).scatter_(1, order, values)


OPERATOR = of_torch_npu("npu_top_k_top_p", top_k_top_p)
