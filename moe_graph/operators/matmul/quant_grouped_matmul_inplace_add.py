"""`npu_add_quant_gmm_(self, x1, x2, x2_scale, group_list, *, x1_scale, ...)`: a group's product of float8 added to its matrix; and a copy.

    self [G, M, N] float32   x1 [M, K], as a rule a transposed view of [K, M]   x2 [K, N]   group_list [G] int64: how K is divided
    group_list_type 0: running sums, 1: sizes; what lies behind the last group is not read

    T-C   hifloat8 (bytes, x1_dtype, x2_dtype): x1_scale [G] or [G, 1], x2_scale [G, N], [G, 1] or [G] float32
          self[i] += x1[:, group i] @ x2[group i] * x2_scale[i] * x1_scale[i]
    MX    float8_e4m3fn, float8_e5m2: float8_e8m0 for blocks of 32 of a group's K, x1_scale [K / 64 + G, M, 2], x2_scale [K / 64 + G, N, 2];
          those of group i, which starts at K = s, begin in row s / 64 (rounded down) + i

group_sizes must be None. Only Ascend 950 has it. Sources: the document of aclnnQuantGroupedMatmulInplaceAdd (ops-transformer, gmm) and its
checks of arguments, op-plugin's adapter. A product is nearly exact, scaled and added in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import copying, of_torch_npu
from moe_graph.operators.ge import GeKernel, Planned
from moe_graph.operators.matmul import scaled_operands
from moe_graph.operators.matmul.grouped_rows import segments
from moe_graph.operators.quantization import hifloat8, mx

_NAME = "npu_add_quant_gmm_"
_check = Checks(_NAME)
_PAIR = 2 * mx.BLOCK


def _added(
    y: Tensor,
    x1: Tensor,
    x2: Tensor,
    names: tuple[str, str],
    x1_scale: Tensor | None,
    x2_scale: Tensor,
    group_list: Tensor,
    kind: int,
) -> Tensor:
    """self with the products of carried elements, which have these names in GE, added in place."""
    mx.only_on_950(_NAME)
    _check.dtype("self", y, (torch.float32,))
    _check.rank("x1", x1, (2,), "[M, K]")
    _check.rank("x2", x2, (2,), "[K, N]")
    _check.rank("group_list", group_list, (1,), "[G]")
    (rows, inner), columns, groups = x1.shape, x2.shape[1], group_list.shape[0]
    _check.size(x2.shape[0] == inner, "x2", f"of shape [K, N], K = {inner}", x2)
    _check.size(y.shape == (groups, rows, columns), "self", f"of shape [G, M, N] = {[groups, rows, columns]}", y)
    if x1_scale is None:
        _check.refuse("x1_scale", "given", None)
    assert x1_scale is not None
    of_hifloat8 = names == (hifloat8.GE_NAME, hifloat8.GE_NAME)
    if not of_hifloat8 and not {*names} <= {form.ge for form in mx.FLOAT8}:
        _check.refuse("x1 and x2", "float8_e4m3fn or float8_e5m2, or both hifloat8", f"{x1.dtype} and {x2.dtype}")
    if of_hifloat8:
        factors = _factors(x1_scale, x2_scale, groups, columns)
    else:
        for argument, scale, size in (("x1_scale", x1_scale, rows), ("x2_scale", x2_scale, columns)):
            shape = (inner // _PAIR + groups, size, 2)
            _check.size(scale.shape == shape, argument, f"of shape [K / 64 + G, size, 2] = {list(shape)}", scale)
    for group, part in segments(_check, group_list, kind, groups, inner):
        left, right = x1[:, part], x2[part]
        if of_hifloat8:
            sums = scaled_operands.values(left, names[0]) @ scaled_operands.values(right, names[1])
            y[group] += sums.float() * factors[group]
            continue
        first = part.start // _PAIR + group
        places = slice(first, first + -(-(part.stop - part.start) // _PAIR))
        y[group] += scaled_operands.block_product(
            left, names[0], x1_scale[places].transpose(0, 1), right, names[1], x2_scale[places]
        )
    return y


def _factors(x1_scale: Tensor, x2_scale: Tensor, groups: int, columns: int) -> Tensor:
    """float32 [G, 1, N or 1]: what the products of hifloat8 are multiplied by."""
    for argument, scale, widths in (("x1_scale", x1_scale, (1,)), ("x2_scale", x2_scale, (1, columns))):
        _check.dtype(argument, scale, (torch.float32,))
        allowed = [(groups,), *((groups, width) for width in widths)]
        _check.size(tuple(scale.shape) in allowed, argument, f"of one of the shapes {allowed}", scale)
    return x2_scale.reshape(groups, 1, -1) * x1_scale.reshape(groups, 1, 1)


def add_quant_gmm_(
    y: Tensor,
    x1: Tensor,
    x2: Tensor,
    x2_scale: Tensor,
    group_list: Tensor,
    *,
    x1_scale: Tensor | None = None,
    group_list_type: int | None = 0,
    group_sizes: Sequence[int] | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    x1_scale_dtype: int | None = None,
    x2_scale_dtype: int | None = None,
) -> Tensor:
    """self with the products added, in place. Raises ValueError for what the module's document excludes."""
    _check.absent("group_sizes", group_sizes)
    names = (
        scaled_operands.name_of(f"{_NAME}: x1_dtype", x1, x1_dtype),
        scaled_operands.name_of(f"{_NAME}: x2_dtype", x2, x2_dtype),
    )
    for argument, number in (("x1_scale_dtype", x1_scale_dtype), ("x2_scale_dtype", x2_scale_dtype)):
        _check.value(argument, number, (None, scaled_operands.E8M0_NUMBER))
    return _added(y, x1, x2, names, x1_scale, x2_scale, group_list, group_list_type or 0)


add_quant_gmm = copying(add_quant_gmm_)


def _ge_quant_grouped_matmul_inplace_add(
    x1: Tensor,
    x2: Tensor,
    scale2: Tensor,
    group_list: Tensor,
    y: Tensor,
    scale1: Tensor | None = None,
    *,
    group_list_type: int = 0,
    group_size: int = 0,
    node: Planned,
) -> Tensor:
    """GE QuantGroupedMatmulInplaceAdd."""
    _check.value("group_size", group_size, (0,))
    names = (scaled_operands.ge_name(node, 0, x1), scaled_operands.ge_name(node, 1, x2))
    return _added(y, x1, x2, names, scale1, scale2, group_list, group_list_type)


OPERATOR = of_torch_npu(
    _NAME,
    add_quant_gmm_,
    ge=[GeKernel("QuantGroupedMatmulInplaceAdd", _ge_quant_grouped_matmul_inplace_add, assigns=("y",))],
)
COPYING_OPERATOR = of_torch_npu("npu_add_quant_gmm", add_quant_gmm)
