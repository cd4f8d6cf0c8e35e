"""`npu_mhc_sinkhorn(x, eps, num_iters, out_flag)`: square matrices made doubly stochastic, for hyper-connections (mHC); its gradient.

    x [B, S, n, n] or [T, n, n] float32, n 4, 6 or 8 -> y like x; num_iters 1 to 100
    first       softmax along the rows + eps, then each column / (its sum + eps)
    again       each row / (its sum + eps), then each column / (its sum + eps), num_iters - 1 times
    out_flag 1  norm [2 * num_iters * T * n * 8], the softmax and the matrices after each division, and sum [2 * num_iters * T * 8], what
                they were divided by: npu_mhc_sinkhorn_backward takes both

norm and sum lie as the cores of Ascend 950 divide the work, 64 of them with 248 KiB each: matrices in chunks, of each chunk [2 * num_iters,
n, matrices, 8] of norm, rows padded with 0; and for each step its sums of rows [8, matrices], padded with 1 and all 1 in the first, then of
columns [matrices, 8], padded with 0.

Sources: the operator's page in the torch_npu documentation; the golden function of the backward operator's test for the layout and for the
softmax, which lies in norm without eps. Float32. torchair has no converter.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check, _check_grad = Checks("npu_mhc_sinkhorn"), Checks("npu_mhc_sinkhorn_backward")
_CORES, _CORE_BYTES = 64, 248 * 1024
_RESERVED = 64 + 512  # bytes of a core for masks and reductions
_WIDTH = 8  # that rows are padded to
_STEP = 8  # that the matrices of a full chunk are a multiple of


def mhc_sinkhorn(
    x: Tensor, *, eps: float = 1e-6, num_iters: int = 20, out_flag: int = 0
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y, norm and sum, None without out_flag. Raises ValueError for what the document excludes."""
    _check.dtype("x", x, (torch.float32,))
    _check.rank("x", x, (3, 4), "[B, S, n, n] or [T, n, n]")
    _check.size(x.shape[-1] == x.shape[-2] and x.shape[-1] in (4, 6, 8), "x", "of n = 4, 6 or 8", x)
    _check.value("num_iters", num_iters, range(1, 101))
    _check.value("out_flag", out_flag, (0, 1))
    _check.size(not out_flag or x.numel() > 0, "x", "not empty with out_flag 1", x)
    softmax = torch.softmax(x, -1)
    y, norms, sums = softmax + eps, [softmax], [torch.ones_like(x[..., :1])]
    for dim in (-2, *(-1, -2) * (num_iters - 1)):
        total = y.sum(dim, keepdim=True) + eps
        y = y / total
        if out_flag:
            norms.append(y)
            sums.append(total)
    if not out_flag:
        return y, None, None
    n = x.shape[-1]
    norm = torch.stack([pad(step.reshape(-1, n, n), (0, _WIDTH - n)) for step in norms])
    rows, columns = (
        torch.stack([pad(step.reshape(-1, n), (0, _WIDTH - n), value=fill) for step in sums[first::2]])
        for first, fill in ((0, 1.0), (1, 0.0))
    )
    return y, *_laid_out(norm, rows, columns)


def mhc_sinkhorn_backward(grad_y: Tensor, norm: Tensor | None, sum: Tensor | None) -> Tensor:
    """The gradient of x. Raises ValueError for norm and sum that are not those of matrices like these."""
    if norm is None or sum is None:
        _check_grad.refuse("norm and sum", "those that npu_mhc_sinkhorn gives with out_flag=1", None)
    n, grad = grad_y.shape[-1], grad_y.float().reshape(-1, *grad_y.shape[-2:])
    count = len(grad)
    steps = norm.numel() // (count * n * _WIDTH) if count else 0
    if steps < 2 or steps % 2 or norm.numel() != steps * count * n * _WIDTH or sum.numel() != steps * count * _WIDTH:
        wanted = f"of 2 * num_iters * {count * n * _WIDTH} and 2 * num_iters * {count * _WIDTH} elements"
        _check_grad.refuse("norm and sum", wanted, f"{norm.numel()} and {sum.numel()}")
    norms, sums = torch.empty(steps, count, n, n), torch.empty(steps, count, n)
    for part in _chunks(count, n):
        size, first = part.stop - part.start, steps * part.start * _WIDTH
        of_part = norm[first * n : first * n + steps * size * n * _WIDTH].view(steps, n, size, _WIDTH)
        norms[:, part] = of_part[..., :n].transpose(1, 2)
        rows, columns = sum[first : first + steps * size * _WIDTH].view(steps // 2, 2, -1).unbind(1)
        sums[::2, part] = rows.view(-1, _WIDTH, size)[:, :n].transpose(1, 2)
        sums[1::2, part] = columns.view(-1, size, _WIDTH)[..., :n]
    for step in reversed(range(1, steps)):
        dim = -2 if step % 2 else -1  # the sums of columns run along the rows
        grad = (grad - (grad * norms[step]).sum(dim, keepdim=True)) / sums[step].unsqueeze(dim)
    grad = norms[0] * (grad - (grad * norms[0]).sum(-1, keepdim=True))
    return grad.view(grad_y.shape)


def _chunks(count: int, n: int) -> Iterator[slice]:
    """The matrices that a core holds at once, core by core."""
    of_core = size = -(-count // _CORES)
    room = (_CORE_BYTES - _RESERVED) // 2  # for each of two buffers
    if _bytes(of_core, n) > room:
        size = room // _bytes(1, n)
        size = size // _STEP * _STEP or size
    for core in range(0, count, of_core):
        end = min(core + of_core, count)
        for start in range(core, end, size):
            yield slice(start, min(start + size, end))


def _bytes(matrices: int, n: int) -> int:
    """What a chunk takes of a core's memory: matrices and their results, two steps of norm and of sums."""
    dense = -(-matrices * n * n // _WIDTH) * _WIDTH
    return 4 * (2 * dense + 2 * matrices * _WIDTH * (n + 1))


def _laid_out(norm: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """norm [2I, T, n, 8] and the sums [I, T, 8] as the document says."""
    norms, sums = [], []
    for part in _chunks(norm.shape[1], norm.shape[2]):
        norms.append(norm[:, part].transpose(1, 2).flatten())
        of_rows, of_columns = rows[:, part].transpose(1, 2), columns[:, part]
        sums.append(torch.cat((of_rows.flatten(1), of_columns.flatten(1)), 1).flatten())
    return torch.cat(norms), torch.cat(sums)


OPERATOR = of_torch_npu("npu_mhc_sinkhorn", mhc_sinkhorn)
BACKWARD_OPERATOR = of_torch_npu("npu_mhc_sinkhorn_backward", mhc_sinkhorn_backward)
