"""`npu_add_quant_matmul_(input, x1, x2, x2_scale, *, x1_scale, ...)`: a product of float8 added to input; and a form that copies.

    input [M, N] float32   x1 [M, K], x2 [K, N], as a rule transposed views of [K, M] and [N, K]
    float8_e4m3fn, float8_e5m2     scales of float8_e8m0 for blocks of 32 along K, as `scaled_operands` says; group_sizes [1, 1, 32] or 0
    hifloat8 (uint8 with its number)    scales [1] float32: input += x1 @ x2 * (x1_scale * x2_scale)

Only Ascend 950 has it. Sources: the document of aclnnQuantBatchMatmulInplaceAdd (ops-nn, matmul), op-plugin's
adapter. The product is nearly exact and rounded to float32 before it is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import copying, of_torch_npu
from moe_graph.operators.ge import GeKernel, Planned
from moe_graph.operators.matmul import scaled_operands
from moe_graph.operators.matmul.quant_matmul import check_group_sizes, of_group_size, turned
from moe_graph.operators.quantization import hifloat8, mx

_check = Checks("npu_add_quant_matmul_")


def _added(
    y: Tensor, x1: Tensor, name1: str, x2: Tensor, name2: str, x1_scale: Tensor | None, x2_scale: Tensor
) -> Tensor:
    """The product of carried elements, added in place."""
    mx.only_on_950("npu_add_quant_matmul_")
    _check.dtype("input", y, (torch.float32,))
    if x1_scale is None:
        _check.refuse("x1_scale", "given", None)
    if name1 == name2 == hifloat8.GE_NAME:
        for argument, scale in (("x1_scale", x1_scale), ("x2_scale", x2_scale)):
            _check.dtype(argument, scale, (torch.float32,))
            _check.size(scale.numel() == 1, argument, "of shape [1]", scale)
        sums = (scaled_operands.values(x1, name1) @ scaled_operands.values(x2, name2)).float()
        return y.add_(sums * (x1_scale * x2_scale))
    if not {name1, name2} <= {form.ge for form in mx.FLOAT8}:
        _check.refuse("x1 and x2", "float8_e4m3fn or float8_e5m2, or both hifloat8", f"{x1.dtype} and {x2.dtype}")
    return y.add_(scaled_operands.block_product(x1, name1, x1_scale, x2, name2, x2_scale))


def add_quant_matmul_(
    y: Tensor,
    x1: Tensor,
    x2: Tensor,
    x2_scale: Tensor,
    *,
    x1_scale: Tensor | None = None,
    group_sizes: Sequence[int] | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    x1_scale_dtype: int | None = None,
    x2_scale_dtype: int | None = None,
) -> Tensor:
    """input with the product added, in place. Raises ValueError for what the module's document excludes."""
    check_group_sizes("npu_add_quant_matmul_", group_sizes, x1_scale)
    names = (
        scaled_operands.name_of("npu_add_quant_matmul_: x1_dtype", x1, x1_dtype),
        scaled_operands.name_of("npu_add_quant_matmul_: x2_dtype", x2, x2_dtype),
    )
    return _added(y, x1, names[0], x2, names[1], x1_scale, x2_scale)


add_quant_matmul = copying(add_quant_matmul_)


def _ge_quant_batch_matmul_inplace_add(
    x1: Tensor,
    x2: Tensor,
    x2_scale: Tensor,
    y: Tensor,
    x1_scale: Tensor | None = None,
    *,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    group_size: int = 0,
    node: Planned,
) -> Tensor:
    """GE QuantBatchMatmulInplaceAdd."""
    check_group_sizes("npu_add_quant_matmul_", of_group_size(group_size), x1_scale)
    left, x1_scale = turned(x1, x1_scale, transpose_x1)
    right, scale = turned(x2, x2_scale, transpose_x2)
    names = (scaled_operands.ge_name(node, 0, x1), scaled_operands.ge_name(node, 1, x2))
    return _added(y, left, names[0], right, names[1], x1_scale, scale)


OPERATOR = of_torch_npu(
    "npu_add_quant_matmul_",
    add_quant_matmul_,
    ge=[GeKernel("QuantBatchMatmulInplaceAdd", _ge_quant_batch_matmul_inplace_add, assigns=("y",))],
)
COPYING_OPERATOR = of_torch_npu("npu_add_quant_matmul", add_quant_matmul)
