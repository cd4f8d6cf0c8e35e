"""`npu_grouped_matmul_finalize_routing(x, w, group_list, ...)`: the experts' second product, and each token's sum over its experts.

    x [M, K] int8   w [E, K, N] int8, or int4 packed in int32 [E, K, N / 8]   group_list [E] int64: sizes (1), running sums (0)
    scale  [E, N] float32; of int4 int64 [E, groups of K, N] with float32 in the low 32 bits   pertoken_scale, logit [M] float32
    row_index [M]: the row of y that a row is added to   shared_input [rows, N] bfloat16

    v = x @ w * scale * pertoken_scale * logit;  y[row_index] += v;  y[shared_input_offset:] += shared_input_weight * shared_input
    int4:  v = (x @ w * scale with x - 8 for x, + bias [E, N], + sum of x over each group of K * offset) * pertoken_scale * logit

    y [output_bs, N] float32; output_bs 0: M rows

Sources: the operator's page in the torch_npu documentation; the document of aclnnGroupedMatmulFinalizeRoutingV3 (ops-transformer) and, for
int4, the reference of op-plugin's test. Sums of products are exact, the rest float32. Not served: the types of Ascend 950.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.matmul.grouped_rows import scaled, segments, weights

_check = Checks("npu_grouped_matmul_finalize_routing")


def grouped_matmul_finalize_routing(
    x: Tensor,
    w: Tensor,
    group_list: Tensor,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    shared_input: Tensor | None = None,
    logit: Tensor | None = None,
    row_index: Tensor | None = None,
    dtype: torch.dtype | None = None,
    shared_input_weight: float | None = 1.0,
    shared_input_offset: int | None = 0,
    output_bs: int | None = 0,
    group_list_type: int | None = 1,
    tuning_config: Sequence[int] | None = None,
    x_dtype: int | None = None,
    w_dtype: int | None = None,
    scale_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
) -> Tensor:
    """As the module's document says. Raises ValueError for arguments that do not fit, NotImplementedError for types not served."""
    numbers = dict(x_dtype=x_dtype, w_dtype=w_dtype, scale_dtype=scale_dtype, pertoken_scale_dtype=pertoken_scale_dtype)
    for name, value in numbers.items():
        if value is not None:
            raise NotImplementedError(f"npu_grouped_matmul_finalize_routing: {name} must be None, it is not served")
    if x.dtype != torch.int8:
        raise NotImplementedError(f"npu_grouped_matmul_finalize_routing: x must be int8, got {x.dtype}")
    _check.value("dtype", dtype, (None, torch.float32))
    if scale is None:
        _check.refuse("scale", "given", None)
    assert scale is not None
    matrices, is_int4 = weights(_check, "w", w, x.shape[1])
    if not is_int4:
        _check.absent("bias", bias, "for int8 weights")
        _check.absent("offset", offset, "for int8 weights")
    kind = 1 if group_list_type is None else group_list_type
    values = torch.zeros((len(x), matrices.shape[-1]), dtype=torch.float32)
    for group, rows in segments(_check, group_list, kind, len(matrices), len(x)):
        extra = None if bias is None else bias[group]
        values[rows] = scaled(x[rows], matrices[group], scale[group], extra, is_int4)
        if offset is not None:  # [groups of K, N]: what the zero points of the weights add
            sums = x[rows].float().unflatten(1, (len(offset[group]), -1)).sum(-1)
            values[rows] += sums @ offset[group].float()
    for factor in (pertoken_scale, logit):
        if factor is not None:
            values *= factor.float().reshape(-1, 1)
    count = output_bs or len(x)
    y = torch.zeros((count, values.shape[1]), dtype=torch.float32)
    if row_index is None:
        _check.size(count == len(x), "output_bs", "0 or the rows of x without row_index", x)
        y += values
    else:
        y.index_add_(0, row_index.long(), values)
    if shared_input is not None:
        start = shared_input_offset or 0
        _check.size(
            start + len(shared_input) <= count, "shared_input", f"within y's {count} rows from {start} on", shared_input
        )
        weight = 1.0 if shared_input_weight is None else shared_input_weight
        y[start : start + len(shared_input)] += weight * shared_input.float()
    return y


def _ge_grouped_matmul_finalize_routing(
    x: Tensor,
    w: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    group_list: Tensor | None = None,
    shared_input: Tensor | None = None,
    logit: Tensor | None = None,
    row_index: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    dtype: GeType = 0,  # type: ignore[assignment]
    shared_input_weight: float = 1.0,
    shared_input_offset: int = 0,
    transpose_x: bool = False,
    transpose_w: bool = False,
    output_bs: int = 0,
    group_list_type: int = 1,
    tuning_config: list | tuple[int, ...] = (),
) -> Tensor:
    """GE GroupedMatmulFinalizeRouting."""
    if transpose_x or transpose_w or dtype.torch != torch.float32 or group_list is None:
        raise NotImplementedError(
            "GroupedMatmulFinalizeRouting: transposes must be false, dtype DT_FLOAT and group_list fed, as torchair writes them"
        )
    return grouped_matmul_finalize_routing(
        x,
        w,
        group_list,
        scale=scale,
        bias=bias,
        offset=offset,
        pertoken_scale=pertoken_scale,
        shared_input=shared_input,
        logit=logit,
        row_index=row_index,
        shared_input_weight=shared_input_weight,
        shared_input_offset=shared_input_offset,
        output_bs=output_bs,
        group_list_type=group_list_type,
    )


OPERATOR = of_torch_npu(
    "npu_grouped_matmul_finalize_routing",
    grouped_matmul_finalize_routing,
    ge=[GeKernel("GroupedMatmulFinalizeRouting", _ge_grouped_matmul_finalize_routing)],
)
