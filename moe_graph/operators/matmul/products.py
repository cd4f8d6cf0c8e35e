"""One group's product, and all of them at once, with float32 sums that are rounded once (of int8: exact).

Half types and int8 take the CPU's own instructions where `moe_graph.foundation.cpu` says that it has them, else float32 copies.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from moe_graph.foundation import cpu, transforms

# |int8 * int8| <= 2 ** 14, so sums of so many products are whole numbers that float32 holds exactly, in whatever order they are added.
_EXACT_PRODUCTS = 1024


def multiply(x: Tensor, weight: Tensor, output: Tensor, bias: Tensor | None = None) -> None:
    """x @ weight + bias with float32 sums, rounded once into `output`."""
    one_dtype = x.dtype == weight.dtype == output.dtype
    if one_dtype and bias is None and x.is_cpu and cpu.multiplies(x.dtype):
        torch.mm(x, weight, out=output)
        return
    direct = one_dtype and x.dtype == torch.float32
    y = output if direct else output.new_empty(output.shape, dtype=torch.float32)
    if bias is None:
        torch.mm(x.float(), weight.float(), out=y)
    else:
        torch.addmm(bias.float(), x.float(), weight.float(), out=y)
    if not direct:
        output.copy_(y)


def exact_product(x: Tensor, weight: Tensor) -> Tensor:
    """[..., M, K] @ [..., K, N] -> the exact sums, int32. Of int8, or of whole numbers about as small in another type."""
    if x.dtype != torch.int8 or weight.dtype != torch.int8 or not x.shape[-1]:
        return (x.double() @ weight.double()).to(torch.int32)
    plain = x.dim() == weight.dim() == 2 and transforms.is_ordinary(x) and transforms.is_ordinary(weight)
    product = cpu.int8_product() if plain and x.numel() and weight.numel() else None
    if product is not None:
        # Of rows in the same memory (expand) torch's sums are wrong.
        transposed = weight.t().is_contiguous()
        return product(x.contiguous(), weight if transposed else weight.contiguous())
    steps = (slice(i, i + _EXACT_PRODUCTS) for i in range(0, x.shape[-1], _EXACT_PRODUCTS))
    parts = ((x[..., step].float() @ weight[..., step, :].float()).to(torch.int32) for step in steps)
    return functools.reduce(torch.add, parts)


_grouped_mm = getattr(torch.nn.functional, "grouped_mm", None)
_ALIGNMENT = 16  # bytes of each stride, as torch's grouped product wants it


def grouped(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor | None:
    """rows [M, K] in groups, given by the running sum `ends` [G] of their sizes, times matrices [G, K, N] -> [M, N]; rows beyond are 0.

    By torch's own grouped product, which is `multiply` of each group without a loop here. None where it has not this form, and where the
    groups do not fit the rows.
    """
    if _grouped_mm is None or not rows.is_cpu or not cpu.multiplies(rows.dtype):
        return None
    if not _is_aligned(rows) or not _is_aligned(matrices):
        return None
    values = ends.tolist()
    if values != sorted(values) or values[0] < 0 or values[-1] > len(rows):
        return None
    joined: Tensor = _grouped_mm(rows, matrices, offs=ends.to(torch.int32))
    if values[-1] < len(rows):
        joined[values[-1] :] = 0
    return joined


def _is_aligned(tensor: Tensor) -> bool:
    """Is it laid out as torch's grouped product takes it: rows or columns side by side, at strides of whole 16 bytes?"""
    *outer, row, column = tensor.stride()
    wide, length = (row, tensor.shape[-1]) if column == 1 else (column, tensor.shape[-2])
    unit = tensor.element_size()
    aligned = all(stride * unit % _ALIGNMENT == 0 for stride in (wide, *outer, tensor.storage_offset()))
    return aligned and min(row, column) == 1 and wide >= length > 0
