"""The masks of ATB's attention operators, by their numbers, as what is added to the scores and which keys a query sees.

    0                        none
    1 norm                   what is added, [Sq, Sk], [B, Sq, Sk] or [B, N, Sq, Sk]; rows and keys count from the start of a sequence
    2 alibi                  the same, with biases in it
    3 norm, compressed       the upper triangle of 128 x 128 or more (not 0 above the diagonal): causal
    4 alibi, compressed      [256, 256], distance of query and key, with the slopes [N], which are negated: -slopes * (query - key), causal
    5                        the same with the distance's square root
    9 causal                 causal without a mask

Compressed masks and the last are causal from the lower right corner: a query's position is its row behind the keys that no query belongs
to. The kernel takes the distances themselves, so a mask that holds others is refused.

Source: op-plugin's tests (their golden functions) and C++, with the numbers of ATB's SelfAttentionParam::MaskType.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.attention.masks import Sequences
from moe_graph.operators.checks import Checks

NONE, NORM, ALIBI, NORM_COMPRESS, ALIBI_COMPRESS, ALIBI_COMPRESS_SQRT = range(6)
CAUSAL = 9
_TOLERANCE = 2**-7  # bfloat16's rounding of a distance


def of_type(
    check: Checks,
    kind: int,
    queries: Sequences,
    keys: Sequences,
    mask: Tensor | None,
    slopes: Tensor | None,
    heads: int,
) -> tuple[Tensor, Tensor | None]:
    """(which keys a query sees, bool; what is added or None), both to be broadcast to [B, N, Sq, Sk]."""
    allowed = (torch.arange(keys.rows) < keys.lengths[:, None])[:, None, None]
    if kind == NONE:
        return allowed, None
    shift = (keys.lengths - queries.lengths).view(-1, 1, 1, 1)
    distance = torch.arange(queries.rows)[:, None] + shift - torch.arange(keys.rows)
    if kind == CAUSAL:
        return allowed & (distance >= 0), None
    if mask is None:
        check.refuse("mask", f"given with mask_type {kind}", None)
    if kind in (NORM, ALIBI):
        return allowed, _added(check, mask, len(keys.lengths), queries.rows, keys.rows)
    allowed = allowed & (distance >= 0)
    if kind == NORM_COMPRESS:
        check_triangle(check, mask)
        return allowed, None
    check.value("mask_type", kind, range(NONE, ALIBI_COMPRESS_SQRT + 1))
    if slopes is None or tuple(slopes.shape) != (heads,):
        check.refuse("slopes", f"of shape [{heads}]", slopes if slopes is None else f"shape {tuple(slopes.shape)}")
    steps = distance.clamp_min(0).float()
    given = torch.arange(256).float()
    if kind == ALIBI_COMPRESS_SQRT:
        steps, given = steps.sqrt(), given.sqrt()
    if tuple(mask.shape) != (256, 256) or not torch.allclose(mask[:, 0].float(), given, rtol=_TOLERANCE, atol=0):
        check.refuse("mask", "[256, 256] with the distances of queries and keys", f"another, shape {tuple(mask.shape)}")
    return allowed, slopes.float().view(-1, 1, 1) * steps


def _added(check: Checks, mask: Tensor, batch: int, rows: int, keys: int) -> Tensor:
    mask = mask if mask.dim() > 2 else mask[None]
    mask = mask if mask.dim() > 3 else mask[:, None]
    if mask.dim() != 4 or mask.shape[0] not in (1, batch) or mask.shape[2] < rows or mask.shape[3] < keys:
        wanted = f"of shape [{rows}, {keys}], [{batch}, {rows}, {keys}] or [{batch}, N, {rows}, {keys}], or larger"
        check.refuse("mask", wanted, f"shape {tuple(mask.shape)}")
    added = mask[:, :, :rows, :keys].float()
    if mask.dtype == torch.bfloat16 and bool((added == 1).any()) and not bool(((added != 0) & (added != 1)).any()):
        raise NotImplementedError("mask: of ones in bfloat16, whose factor ATB does not document, is not served")
    return added


def check_triangle(check: Checks, mask: Tensor) -> None:
    """Refuse a mask that is no upper triangle, one or one for each sequence."""
    size = mask.shape[-1]
    if size < 128 or mask.shape[-2] != size or not bool(((mask != 0) == torch.ones(size, size).triu(1).bool()).all()):
        check.refuse("mask", "the upper triangle of [128, 128] or more (not 0 above the diagonal)", tuple(mask.shape))
