"""The check of operators that draw random numbers: same shape, dtype and distribution as eager PyTorch, not the same numbers.

Both sides are drawn `RUNS` times with the same inputs. With n numbers on each side, V their variance and M their fourth central moment:

mean       of all numbers, apart by at most 5 standard errors: 5 sqrt(2 V / n)
variance   of all numbers, apart by at most 5 standard errors: 5 sqrt(2 (M - V^2) / n)
range      minimum and maximum apart by at most half of the reference's range, which the tails of the distributions at hand keep
elements   the mean of each element over the runs, apart by at most 6 standard errors, 6 sqrt(2 V / RUNS): an operator that ignores
           where its probabilities stand is found by this
draws      the runs differ from each other if those of the reference do
"""

from __future__ import annotations

import torch
from torch import Tensor

RUNS = 256
_SLACK = 1e-6  # float rounding where there is no variance at all


def difference(got: list[Tensor], want: list[Tensor]) -> str | None:
    """What tells the draws `got` from the reference's `want`, or None. Both hold one CPU tensor for each run."""
    for draw in got:
        if draw.shape != want[0].shape or draw.dtype != want[0].dtype:
            return f"drew {draw.dtype} {list(draw.shape)}, eager {want[0].dtype} {list(want[0].shape)}"
    if want[0].numel() == 0:
        return None
    ours, theirs = _table(got), _table(want)
    if not torch.isfinite(ours).all():
        return "drew numbers that are not finite"
    count, variance = theirs.numel(), theirs.var().item()
    fourth = (theirs - theirs.mean()).pow(4).mean().item()
    mean_bound = 5 * (2 * variance / count) ** 0.5 + _SLACK
    variance_bound = 5 * (2 * max(fourth - variance**2, 0) / count) ** 0.5 + _SLACK
    element_bound = 6 * (2 * variance / len(want)) ** 0.5 + _SLACK
    low, high = theirs.min().item(), theirs.max().item()
    range_bound = (high - low) / 2 + _SLACK
    for what, mine, reference, bound in (
        ("mean", ours.mean().item(), theirs.mean().item(), mean_bound),
        ("variance", ours.var().item(), variance, variance_bound),
        ("minimum", ours.min().item(), low, range_bound),
        ("maximum", ours.max().item(), high, range_bound),
    ):
        if abs(mine - reference) > bound:
            return f"{what} {mine:.6g}, eager {reference:.6g}, allowed apart {bound:.3g} over {count} numbers"
    apart = (ours.mean(0) - theirs.mean(0)).abs().max().item()
    if apart > element_bound:
        return f"the mean of an element is {apart:.6g} apart, allowed {element_bound:.3g} over {len(want)} runs"
    if (theirs != theirs[0]).any() and not (ours != ours[0]).any():
        return f"all {len(got)} runs drew the same numbers"
    return None


def _table(draws: list[Tensor]) -> Tensor:
    """[runs, elements], float64."""
    return torch.stack([draw.reshape(-1).double() for draw in draws])
