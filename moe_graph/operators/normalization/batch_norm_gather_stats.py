"""`batch_norm_gather_stats_update(self, mean, invstd, running_mean, running_var, momentum, eps, counts)`: the batch's mean and
1 / sqrt(variance + eps), gathered from the ranks of a synchronized batch norm; the running values move on in place.

    self [N, C, ...]    mean: in spite of the schema's name the sums of each rank's elements, [ranks, C]    invstd: of their squares
    counts [ranks]: elements a channel, taken as int32    running_mean, running_var [C] or None    results [C] in the dtype of the sums

    mean = sum of the sums / n    variance = sum of the squares / n - mean^2    n = sum of counts
    running_mean moves by momentum towards mean, running_var towards variance * n / (n - 1)

Source: the document of aclnnSyncBatchNormGatherStats (ops-nn). Accumulation is float32, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel


def _gathered(
    total: Tensor, squares: Tensor, counts: Tensor, momentum: float, eps: float, running: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, 1 / sqrt(variance + eps), and the running mean and variance moved on; all float32."""
    n = counts.to(torch.int32).sum()
    mean = total.float().sum(0) / n
    variance = squares.float().sum(0) / n - mean.square()
    running_mean, running_var = (values.float() for values in running)
    return (
        mean,
        (variance + eps).rsqrt(),
        running_mean * (1 - momentum) + mean * momentum,
        running_var * (1 - momentum) + variance * (n / (n - 1)) * momentum,
    )


def gather_stats_update(
    x: Tensor,
    total: Tensor,
    squares: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps), as the module's document says; the running values are changed in place.

    Raises RuntimeError, as torch_npu does, if x has no channels.
    """
    if x.dim() < 2:
        raise RuntimeError(f"batch_norm_gather_stats_update: self must have two dimensions or more, got {x.dim()}")
    running = (
        total.new_zeros(x.shape[1]) if running_mean is None else running_mean,
        total.new_ones(x.shape[1]) if running_var is None else running_var,
    )
    mean, invstd, *moved = _gathered(total, squares, counts, momentum, eps, running)
    for values, new in zip(running, moved):
        values.copy_(new)
    return mean.to(total.dtype), invstd.to(total.dtype)


def sync_batch_norm_gather_stats(
    total_sum: Tensor,
    total_square_sum: Tensor,
    sample_count: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GE SyncBatchNormGatherStats: mean, 1 / sqrt(variance + eps), and the running mean and variance moved on."""
    found = _gathered(total_sum, total_square_sum, sample_count, momentum, eps, (mean, variance))
    dtypes = (total_sum.dtype, total_sum.dtype, mean.dtype, variance.dtype)
    batch_mean, invstd, new_mean, new_variance = (value.to(dtype) for value, dtype in zip(found, dtypes))
    return batch_mean, invstd, new_mean, new_variance


OPERATOR = of_torch_npu(
    "batch_norm_gather_stats_update",
    gather_stats_update,
    ge=[GeKernel("SyncBatchNormGatherStats", sync_batch_norm_gather_stats)],
)
