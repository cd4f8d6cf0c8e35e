"""The product inside the operators that fuse it with communication: float32, or exact int8 scaled back; not rounded yet."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.ge import GeType
from moe_graph.operators.matmul.products import exact_product
from moe_graph.operators.quantization.trans_quant_param import unpacked


def product(
    x1: Tensor, x2: Tensor, bias: Tensor | None, row_scale: Tensor | None, column_scale: Tensor | None
) -> Tensor:
    """(x1 @ x2 + bias) * column_scale * row_scale, float32.

    x1 [..., M, K], x2 [K, N]; row_scale [M] or [M, 1], column_scale [N], [1, N] or [1].

    int8 needs a column_scale; other dtypes take none. Raises ValueError otherwise."""
    if (x1.dtype == torch.int8) != (column_scale is not None):
        raise ValueError(
            f"int8 takes scales and other dtypes none, got {x1.dtype} and scales {column_scale is not None}"
        )
    y = exact_product(x1, x2).float() if x1.dtype == torch.int8 else x1.float() @ x2.float()
    if bias is not None:
        y = y + bias.float()
    if column_scale is not None:
        y = y * unpacked(column_scale)[0].reshape(-1)
    return y if row_scale is None else y * row_scale.float().reshape(*x1.shape[:-1], 1)


def result_dtype(x1: Tensor, asked: torch.dtype | None, column_scale: Tensor | None) -> torch.dtype:
    """That of x1; of int8 the one asked for, float16 for packed scales, else bfloat16."""
    if x1.dtype != torch.int8:
        if asked not in (None, x1.dtype):
            raise ValueError(f"the output dtype must be that of x1, {x1.dtype}, got {asked}")
        return x1.dtype
    packed = column_scale is not None and column_scale.dtype in (torch.int64, torch.uint64)
    return asked or (torch.float16 if packed else torch.bfloat16)


def asked_of_ge(x1: Tensor, y_dtype: GeType) -> torch.dtype | None:
    """The dtype that the attribute y_dtype of a GE operator asks for; its default, and that of x1, ask for none."""
    return None if y_dtype.ge == 0 or y_dtype.torch == x1.dtype else y_dtype.torch
