"""softmax(scale * query @ key^T + bias) @ value over the keys that a query may see: what every attention operator of this room computes.

    query [B, N, Sq, D]   key [B, K, Sk, D]   value [B, K, Sk, Dv]   N a multiple of K: N / K query heads share a key/value head
    allowed  bool, bias float, both broadcast to [B, N, Sq, Sk]: the keys that a query sees; what is added to the scaled scores
    sink     [N]: a key of this score with a value of zero

All in float32, which the caller rounds once. A query that sees no key has output 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Probabilities = Callable[[Tensor], Tensor]
"""What is done to exp(score - maximum) before it meets the values: rounding to int8."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
) -> Tensor:
    """The output [B, N, Sq, Dv], float32."""
    if sink is not None or not key.shape[2] or not query.numel():
        return attend_with_sums(query, key, value, scale, allowed, bias, sink)[0]
    batch, heads, rows, width = query.shape
    groups = heads // key.shape[1]
    if rows * groups <= width:  # the scores are fewer than the keys' elements
        scores = scores_of(query, key, scale, bias)
        if allowed is None:
            return _by_value(scores.softmax(-1), value)
        output = _by_value(scores.masked_fill_(~allowed, -torch.inf).softmax(-1), value)
        return output.masked_fill(~allowed.any(-1, keepdim=True), 0)
    mask = _additive(allowed, bias)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = _by_torch(query, key, value, mask, scale)
    if allowed is None:
        return output
    return output.masked_fill(~allowed.any(-1, keepdim=True), 0)


def attend_with_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    probabilities: Probabilities | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the largest score and the sum of exp(score - largest), both [B, N, Sq, 1]: -inf and 0 of a query that sees no key.

    With a sink both count it. `probabilities` is applied to exp(score - largest) before the product with the values.
    """
    exponentials, maximum, total = _exponentials(query, key, scale, allowed, bias, sink)
    if probabilities is not None:
        exponentials = probabilities(exponentials)
    return (_by_value(exponentials, value) / total).masked_fill(maximum.isneginf(), 0), maximum, total


def attend_with_probabilities(
    query: Tensor, key: Tensor, value: Tensor, scale: float, allowed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `attend_with_sums`, and last the probabilities [B, N, Sq, Sk]; 0 of a query that sees no key."""
    exponentials, maximum, total = _exponentials(query, key, scale, allowed, None, None)
    dead = maximum.isneginf()
    output = (_by_value(exponentials, value) / total).masked_fill(dead, 0)
    return output, maximum, total, (exponentials / total).masked_fill(dead, 0)


def _exponentials(
    query: Tensor, key: Tensor, scale: float, allowed: Tensor | None, bias: Tensor | None, sink: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """exp(score - largest) [B, N, Sq, Sk], 0 of a key that is not seen; the largest scores and the sums."""
    scores = scores_of(query, key, scale, bias)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    maximum = scores.amax(-1, keepdim=True) if key.shape[2] else scores.new_full((*scores.shape[:3], 1), -torch.inf)
    if sink is not None:
        maximum = torch.maximum(maximum, sink.float().view(1, -1, 1, 1))
    base = maximum.masked_fill(maximum.isneginf(), 0)
    exponentials = (scores - base).exp()
    total = exponentials.sum(-1, keepdim=True)
    if sink is not None:
        total = total + (sink.float().view(1, -1, 1, 1) - base).exp()
    return exponentials, maximum, total


def finite_sums(maximum: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The largest scores and the sums as training hands them over: of a query that sees no key the smallest and the largest float32."""
    dead, info = maximum.isneginf(), torch.finfo(torch.float32)
    return maximum.masked_fill(dead, info.min), total.masked_fill(dead, info.max)


def log_sum(maximum: Tensor, total: Tensor) -> Tensor:
    """The logarithm of the sum of exp(score); +inf of a query that sees no key, as the kernels set it."""
    return (total.log() + maximum).masked_fill(maximum.isneginf(), torch.inf)


def _by_torch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """torch's attention. It keeps no scores where all heads are of one width: the narrower are filled up with zeros."""
    width, value_width = key.shape[3], value.shape[3]
    if width < value_width:
        query, key = (functional.pad(x, (0, value_width - width)) for x in (query, key))
    elif width > value_width:
        value = functional.pad(value, (0, width - value_width))
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)[..., :value_width]


def _additive(allowed: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """The one mask that torch's attention takes: boolean, or added."""
    if bias is None or allowed is None:
        return allowed if bias is None else bias
    return torch.where(allowed, bias, -torch.inf)


def scores_of(query: Tensor, key: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """The scaled scores, [B, N, Sq, Sk]."""
    batch, heads, rows, width = query.shape
    folded = query.reshape(batch, key.shape[1], heads // key.shape[1] * rows, width)
    scores = (folded @ key.transpose(2, 3)).view(batch, heads, rows, key.shape[2]) * scale
    return scores if bias is None else scores + bias


def _by_value(weights: Tensor, value: Tensor) -> Tensor:
    batch, heads, rows, keys = weights.shape
    folded = weights.view(batch, value.shape[1], heads // value.shape[1] * rows, keys)
    return (folded @ value).view(batch, heads, rows, value.shape[3])
