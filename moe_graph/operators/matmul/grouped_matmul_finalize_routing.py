"""`npu_grouped_matmul_finalize_routing(x, w, group_list, ...)`: the experts' second product, and each token's sum over its experts.

    x [M, K] int8   w [E, K, N] int8, or int4 packed in int32 [E, K, N / 8]   group_list [E] int64: sizes (1), running sums (0)
    scale  [E, N] float32; of int4 int64 [E, groups of K, N] with float32 in the low 32 bits   pertoken_scale, logit [M] float32
    row_index [M]: the row of y that a row is added to   shared_input [rows, N] bfloat16

    v = x @ w * scale * pertoken_scale * logit;  y[row_index] += v;  y[shared_input_offset:] += shared_input_weight * shared_input
    int4:  v = (x @ w * scale with x - 8 for x, + bias [E, N], + sum of x over each group of K * offset) * pertoken_scale * logit

    y [output_bs, N] float32; output_bs 0: M rows

Ascend 950, MX: x [M, K], w [E, K, N] both of float8 or both float4_e2m1 (bytes with x_dtype, w_dtype), pertoken_scale [M, ceil(K / 64), 2],
scale [E, ceil(K / 64), N, 2] float8_e8m0 of blocks of 32 (`scaled_operands`), bias [E, N]
    v = ((x * pertoken_scale) @ (w * scale) + bias) * logit

Sources: the operator's page in the torch_npu documentation; the document of aclnnGroupedMatmulFinalizeRoutingV3 (ops-transformer) and, for
int4, the reference of op-plugin's test. MX: the shapes of op-plugin's test and adapter, and the products of aclnnQuantMatmulV5. Sums of
products are exact, the rest float32. Not served: hifloat8, float4 weights of a float8 x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType, Planned
from moe_graph.operators.matmul import scaled_operands
from moe_graph.operators.matmul.grouped_rows import scaled, segments, weights
from moe_graph.operators.quantization import hifloat8, mx

_NAME = "npu_grouped_matmul_finalize_routing"
_check = Checks(_NAME)


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
    _check.value("dtype", dtype, (None, torch.float32))
    names = (
        scaled_operands.name_of(f"{_NAME}: x_dtype", x, x_dtype),
        scaled_operands.name_of(f"{_NAME}: w_dtype", w, w_dtype),
    )
    for name, number in (("scale_dtype", scale_dtype), ("pertoken_scale_dtype", pertoken_scale_dtype)):
        _check.value(name, number, (None, scaled_operands.E8M0_NUMBER))
    matrices = scaled_operands.carried(w, names[1])
    kind = 1 if group_list_type is None else group_list_type
    values = _products(
        scaled_operands.carried(x, names[0]), matrices, names, group_list, kind, scale, bias, offset, pertoken_scale
    )
    return _combined(values, shared_input, logit, row_index, shared_input_weight, shared_input_offset, output_bs)


def _products(
    x: Tensor,
    w: Tensor,
    names: tuple[str, str],
    group_list: Tensor,
    kind: int,
    scale: Tensor | None,
    bias: Tensor | None,
    offset: Tensor | None,
    pertoken_scale: Tensor | None,
) -> Tensor:
    """The experts' products [M, N] float32, scaled. Operands are carried; names: their types in GE, "" of integers."""
    if scale is None:
        _check.refuse("scale", "given", None)
    assert scale is not None
    if any(names):
        return _mx_products(x, w, names, group_list, kind, scale, bias, offset, pertoken_scale)
    if x.dtype != torch.int8:
        raise NotImplementedError(f"{_NAME}: x must be int8, or of MX, got {x.dtype}")
    matrices, is_int4 = weights(_check, "w", w, x.shape[1])
    if not is_int4:
        _check.absent("bias", bias, "for int8 weights")
        _check.absent("offset", offset, "for int8 weights")
    values = torch.zeros((len(x), matrices.shape[-1]), dtype=torch.float32)
    for group, rows in segments(_check, group_list, kind, len(matrices), len(x)):
        extra = None if bias is None else bias[group]
        values[rows] = scaled(x[rows], matrices[group], scale[group], extra, is_int4)
        if offset is not None:  # [groups of K, N]: what the zero points of the weights add
            sums = x[rows].float().unflatten(1, (len(offset[group]), -1)).sum(-1)
            values[rows] += sums @ offset[group].float()
    return values if pertoken_scale is None else values * pertoken_scale.float().reshape(-1, 1)


def _mx_products(
    x: Tensor,
    w: Tensor,
    names: tuple[str, str],
    group_list: Tensor,
    kind: int,
    scale: Tensor,
    bias: Tensor | None,
    offset: Tensor | None,
    pertoken_scale: Tensor | None,
) -> Tensor:
    mx.only_on_950(f"{_NAME} of float8 and float4")
    if hifloat8.GE_NAME in names or "" in names or len({name == scaled_operands.FLOAT4 for name in names}) > 1:
        raise NotImplementedError(f"{_NAME}: x and w must both be of float8 or both float4_e2m1, got {names}")
    _check.absent("offset", offset, "of MX")
    if pertoken_scale is None:
        _check.refuse("pertoken_scale", "given, of MX", None)
    assert pertoken_scale is not None
    _check.size(w.dim() == 3 and w.shape[1] == x.shape[1], "w", f"of shape [E, K, N], K = {x.shape[1]}", w)
    values = torch.zeros((len(x), w.shape[2]), dtype=torch.float32)
    if bias is not None:
        _check.size(bias.shape == (len(w), w.shape[2]), "bias", f"of shape [E, N] = {[len(w), w.shape[2]]}", bias)
    for group, rows in segments(_check, group_list, kind, len(w), len(x)):
        extra = None if bias is None else bias[group]
        values[rows] = scaled_operands.block_product(
            x[rows], names[0], pertoken_scale[rows], w[group], names[1], scale[group], extra
        )
    return values


def _combined(
    values: Tensor,
    shared_input: Tensor | None,
    logit: Tensor | None,
    row_index: Tensor | None,
    shared_input_weight: float | None,
    shared_input_offset: int | None,
    output_bs: int | None,
) -> Tensor:
    """y of the products: each row times its logit added to the row that it belongs to, and the shared experts' rows."""
    if logit is not None:
        values = values * logit.float().reshape(-1, 1)
    count = output_bs or len(values)
    y = torch.zeros((count, values.shape[1]), dtype=torch.float32)
    if row_index is None:
        _check.size(count == len(values), "output_bs", "0 or the rows of x without row_index", values)
        y += values
    else:
        y.index_add_(0, row_index.long(), values)
    if shared_input is not None:
        start, size = shared_input_offset or 0, tuple(y.shape)
        fits = shared_input.dim() == 2 and start + len(shared_input) <= count and shared_input.shape[1] == size[1]
        _check.size(fits, "shared_input", f"rows of y, which is of {size}, from {start} on", shared_input)
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
    node: Planned,
) -> Tensor:
    """GE GroupedMatmulFinalizeRouting."""
    if transpose_x or transpose_w or dtype.torch != torch.float32 or group_list is None:
        raise NotImplementedError(
            "GroupedMatmulFinalizeRouting: transposes must be false, dtype DT_FLOAT and group_list fed, as torchair writes them"
        )
    names = scaled_operands.ge_name(node, 0, x), scaled_operands.ge_name(node, 1, w)
    values = _products(x, w, names, group_list, group_list_type, scale, bias, offset, pertoken_scale)
    return _combined(values, shared_input, logit, row_index, shared_input_weight, shared_input_offset, output_bs)


OPERATOR = of_torch_npu(
    _NAME,
    grouped_matmul_finalize_routing,
    ge=[GeKernel("GroupedMatmulFinalizeRouting", _ge_grouped_matmul_finalize_routing)],
)
