"""`npu_transpose_quant_batchmatmul(x1, x2, dtype, *, x1_scale, x2_scale, ...)`: a batch of products of float8, transposed: y [M, B, N].

    x1 [M, B, K] (perm_x1 [1, 0, 2])   x2 [B, K, N] (perm_x2 [0, 1, 2]), or [B, N, K] ([0, 2, 1])   perm_y [1, 0, 2]

    K-C   float8_e4m3fn, float8_e5m2, K 512, N 128   x1_scale [M], x2_scale [N] float32: y = x1 @ x2 * x2_scale * x1_scale; no [0, 2, 1]
    MX    float8_e4m3fn, K a multiple of 64          float8_e8m0 of blocks of 32 along K: x1_scale [M, B, K / 64, 2], x2_scale
                                                     [B, K / 64, N, 2], or [B, N, K / 64, 2]: y = (x1 * x1_scale) @ (x2 * x2_scale)
    T-C   hifloat8 (bytes, x1_dtype, x2_dtype)       x1_scale [1] float32 or none, x2_scale [N] int64 of npu_trans_quant_param: as K-C

    dtype float16, bfloat16; T-C also hifloat8, rounded away from zero, what is too large infinite

Only Ascend 950 has it. Sources: the operator's page in the torch_npu documentation, the document and the reference of
aclnnTransposeQuantBatchMatMul (ops-nn, matmul). Products are nearly exact, scaling is float32, rounded once. bias is not supported by the
page either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, GeType, Planned
from moe_graph.operators.matmul import scaled_operands
from moe_graph.operators.matmul.quant_matmul import of_group_size
from moe_graph.operators.quantization import elements, hifloat8, mx
from moe_graph.operators.quantization.trans_quant_param import unpacked

_NAME = "npu_transpose_quant_batchmatmul"
_check = Checks(_NAME)
_PLAIN, _SWAPPED, _TURNED = [0, 1, 2], [1, 0, 2], [0, 2, 1]
_RESULTS = (torch.float16, torch.bfloat16)
_K, _N, _PAIR = 512, 128, 64


def transpose_quant_batchmatmul(
    x1: Tensor,
    x2: Tensor,
    dtype: int,
    *,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    group_sizes: Sequence[int] | None = None,
    perm_x1: Sequence[int] | None = None,
    perm_x2: Sequence[int] | None = None,
    perm_y: Sequence[int] | None = None,
    batch_split_factor: int | None = 1,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
) -> Tensor:
    """As the module's document says. Raises ValueError for what it excludes."""
    names = (
        scaled_operands.name_of(f"{_NAME}: x1_dtype", x1, x1_dtype),
        scaled_operands.name_of(f"{_NAME}: x2_dtype", x2, x2_dtype),
    )
    result = hifloat8.GE_NAME if dtype == hifloat8.NUMBER else ""
    torch_dtype = torch.uint8 if result else dtypes.from_number(dtype)
    if torch_dtype not in _RESULTS and not result:
        _check.refuse("dtype", "float16, bfloat16 or torch_npu.hifloat8", dtypes.name(dtype))
    perms = [list(perm_x1 or _SWAPPED), list(perm_x2 or _PLAIN), list(perm_y or _SWAPPED)]
    _check.value("batch_split_factor", batch_split_factor, (None, 1))
    assert torch_dtype is not None
    return _compute(x1, x2, names, bias, x1_scale, x2_scale, list(group_sizes or ()), perms, torch_dtype, result)


def _compute(
    x1: Tensor,
    x2: Tensor,
    names: tuple[str, str],
    bias: Tensor | None,
    x1_scale: Tensor | None,
    x2_scale: Tensor | None,
    group_sizes: list[int],
    perms: list[list[int]],
    dtype: torch.dtype,
    result: str,
) -> Tensor:
    """y of carried operands with these names in GE; `result` names the type of y where dtype alone does not."""
    mx.only_on_950(_NAME)
    _check.absent("bias", bias)
    for argument, perm, allowed in zip(
        ("perm_x1", "perm_x2", "perm_y"), perms, ([_SWAPPED], [_PLAIN, _TURNED], [_SWAPPED])
    ):
        _check.value(argument, perm, allowed)
    _check.rank("x1", x1, (3,), "[M, B, K]")
    _check.rank("x2", x2, (3,), "[B, K, N] or [B, N, K]")
    left, right = x1.permute(perms[0]), x2.permute(perms[1])  # [B, M, K], [B, K, N]
    batch, rows, inner = left.shape
    _check.size(right.shape[:2] == (batch, inner), "x2", f"of B = {batch} and K = {inner}, as x1", x2)
    if x2_scale is None:
        _check.refuse("x2_scale", "given", None)
    assert x2_scale is not None
    if names == (mx.E4M3.ge, mx.E4M3.ge) and x2_scale.dim() == 4:
        y = _by_blocks(left, right, names[0], x1_scale, x2_scale, group_sizes, perms[1])
        return y.permute(1, 0, 2).to(dtype)
    if any(group_sizes):
        _check.refuse("group_sizes", "None or 0 without scales of blocks", group_sizes)
    of_hifloat8 = names == (hifloat8.GE_NAME, hifloat8.GE_NAME)
    if not of_hifloat8 and not {*names} <= {form.ge for form in mx.FLOAT8}:
        _check.refuse("x1 and x2", "of float8_e4m3fn or float8_e5m2, or both of hifloat8", f"{x1.dtype} and {x2.dtype}")
    if result and not of_hifloat8:
        _check.refuse("dtype", "float16 or bfloat16 for x1 of float8", "torch_npu.hifloat8")
    columns = right.shape[2]
    if of_hifloat8:
        _check.dtype("x2_scale", x2_scale, (torch.int64, torch.uint64))
    else:
        _check.value("perm_x2", perms[1], [_PLAIN])
        _check.size(
            inner == _K and columns == _N, "x2", f"of K = {_K} and N = {_N} with scales of rows and columns", x2
        )
        _check.dtype("x2_scale", x2_scale, (torch.float32,))
    _check.size(x2_scale.shape == (columns,), "x2_scale", f"of shape [N] = [{columns}]", x2_scale)
    y = (scaled_operands.values(left, names[0]) @ scaled_operands.values(right, names[1])).float()
    y = y * unpacked(x2_scale)[0]
    if x1_scale is not None:
        _check.dtype("x1_scale", x1_scale, (torch.float32,))
        size = 1 if of_hifloat8 else rows
        _check.size(x1_scale.shape == (size,), "x1_scale", f"of shape [{size}]", x1_scale)
        y = y * x1_scale.unsqueeze(-1)
    elif not of_hifloat8:
        _check.refuse("x1_scale", "given for x1 of float8", None)
    return elements.of_values(y.permute(1, 0, 2), result, dtype)


def _by_blocks(
    left: Tensor,
    right: Tensor,
    name: str,
    x1_scale: Tensor | None,
    x2_scale: Tensor,
    group_sizes: list[int],
    perm_x2: list[int],
) -> Tensor:
    """float32 [B, M, N] of scales of blocks."""
    if group_sizes and (
        len(group_sizes) != 3 or not {*group_sizes[:2]} <= {0, 1} or group_sizes[2] not in (0, mx.BLOCK)
    ):
        _check.refuse("group_sizes", f"two of 0 or 1, and {mx.BLOCK}", group_sizes)
    (batch, rows, inner), columns = left.shape, right.shape[2]
    _check.size(inner % _PAIR == 0, "x1", f"of K, a multiple of {_PAIR}, with scales of blocks", left)
    pairs = inner // _PAIR
    if x1_scale is None:
        _check.refuse("x1_scale", "given with scales of blocks", None)
    assert x1_scale is not None
    _check.size(x1_scale.shape == (rows, batch, pairs, 2), "x1_scale", "of shape [M, B, K / 64, 2]", x1_scale)
    turned = x2_scale.transpose(1, 2) if perm_x2 == _TURNED else x2_scale
    _check.size(
        turned.shape == (batch, pairs, columns, 2),
        "x2_scale",
        "of shape [B, K / 64, N, 2] or [B, N, K / 64, 2]",
        x2_scale,
    )
    for argument, scale in (("x1_scale", x1_scale), ("x2_scale", x2_scale)):
        if not scaled_operands.is_e8m0(scale, None):
            _check.refuse(argument, "of dtype torch.float8_e8m0fnu with scales of blocks", scale.dtype)
    return scaled_operands.block_product(left, name, x1_scale.transpose(0, 1), right, name, turned)


def _ge_transpose_quant_batch_mat_mul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    *,
    dtype: GeType,
    group_size: int = 0,
    perm_x1: list | None = None,
    perm_x2: list | None = None,
    perm_y: list | None = None,
    batch_split_factor: int = 1,
    node: Planned,
) -> Tensor:
    """GE TransposeQuantBatchMatMul."""
    _check.value("batch_split_factor", batch_split_factor, (1,))
    names = (scaled_operands.ge_name(node, 0, x1), scaled_operands.ge_name(node, 1, x2))
    perms = [list(perm_x1 or _SWAPPED), list(perm_x2 or _PLAIN), list(perm_y or _SWAPPED)]
    result = hifloat8.GE_NAME if dtype.name == hifloat8.GE_NAME else ""
    sizes = of_group_size(group_size)
    return _compute(x1, x2, names, bias, x1_scale, x2_scale, sizes, perms, dtype.torch, result)


OPERATOR = of_torch_npu(
    _NAME,
    transpose_quant_batchmatmul,
    ge=[GeKernel("TransposeQuantBatchMatMul", _ge_transpose_quant_batch_mat_mul)],
)
