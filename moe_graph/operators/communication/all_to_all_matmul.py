"""`npu_all_to_all_matmul` and `npu_matmul_all_to_all`: a product behind an AlltoAll, and before it; each with a form of float8.

    npu_all_to_all_matmul  x1 [BS, H], x2 [ranks * H, N], bias [N]: the BS / ranks rows of every rank, side by side, @ x2 + bias
                           -> y [BS / ranks, N], all2all_out [BS / ranks, ranks * H] ([0] without all2all_out_flag)
    npu_matmul_all_to_all  x1 [BS, H1], x2 [H1, H2], bias [H2]: x1 @ x2 + bias, of which rank r gets the r-th part of the columns
                           -> [ranks * BS, H2 / ranks]
    float16, bfloat16; results of x1's dtype

    npu_all_to_all_quant_matmul (x1_quant_mode 7, x2_quant_mode 2)  the received rows become x1_quant_dtype, float8_e4m3fn or float8_e5m2,
                           scaled by their largest magnitude / the type's largest value; x2 float8, x2_scale [N]
    npu_quant_matmul_all_to_all (3, 2)   x1, x2 float8, x1_scale [BS], x2_scale [H2]
                           (x1 @ x2 + bias) * x1_scale * x2_scale, in y_dtype: float32 (default), float16, bfloat16

Sources: the pages of the first two in the torch_npu documentation; of the others op-plugin's tests and torchair's converters (Ascend 950).
Float32 inside, rounded once. Not served: other axes, mx quantization (modes 6 and 6), quantized communication.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_graph.operators import dtypes
from moe_graph.operators.checks import Checks
from moe_graph.operators.communication import process_group
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel

_check, _check_back = Checks("npu_all_to_all_matmul"), Checks("npu_matmul_all_to_all")
_check_quant, _check_quant_back = Checks("npu_all_to_all_quant_matmul"), Checks("npu_quant_matmul_all_to_all")
_FLOATS = (torch.float16, torch.bfloat16)
_FLOAT8 = {24: torch.float8_e4m3fn, 292: torch.float8_e4m3fn, 23: torch.float8_e5m2, 291: torch.float8_e5m2}
_RESULTS = (torch.float32, torch.float16, torch.bfloat16)
_GE_RESULTS = {0: torch.float32, 1: torch.float16, 27: torch.bfloat16}  # GE's numbers, which torchair limits to these
_TOKEN, _CHANNEL, _DYNAMIC_TOKEN = 3, 2, 7
_FORWARD, _BACK = (-2, -1), (-1, -2)


def _gathered(check: Checks, x: Tensor, group: str, ranks: int, axes: Sequence[int] | None) -> Tensor:
    """[BS, H] -> [BS / ranks, ranks * H]"""
    _check_axes(check, axes, _FORWARD)
    check.rank("x1", x, (2,), "[BS, H]")
    if len(x) % ranks:
        check.refuse("x1", f"of a number of rows that the {ranks} ranks divide", f"shape {tuple(x.shape)}")
    found = process_group.of_size(group, ranks, "world_size")
    rows = [len(x) // ranks] * ranks
    # one byte wide types travel as bytes
    carried = x.view(torch.uint8) if x.element_size() == 1 else x
    received = process_group.all_to_all(carried, rows, rows, found).view(x.dtype)
    return received.unflatten(0, (ranks, -1)).transpose(0, 1).flatten(1)


def _spread(check: Checks, y: Tensor, group: str, ranks: int, axes: Sequence[int] | None) -> Tensor:
    """[BS, H2] -> [ranks * BS, H2 / ranks]"""
    _check_axes(check, axes, _BACK)
    if y.shape[1] % ranks:
        check.refuse("x2", f"of a number of columns that the {ranks} ranks divide", y.shape[1])
    found = process_group.of_size(group, ranks, "world_size")
    parts = y.unflatten(1, (ranks, -1)).transpose(0, 1).flatten(0, 1).contiguous()
    return process_group.all_to_all(parts, [len(y)] * ranks, [len(y)] * ranks, found)


def _check_axes(check: Checks, axes: Sequence[int] | None, wanted: tuple[int, int]) -> None:
    if axes and tuple(axes) != wanted:
        check.refuse("all2all_axes", f"None or {list(wanted)}", list(axes))


def _product(check: Checks, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """float32."""
    if weight.dim() != 2 or x.shape[1] != weight.shape[0]:
        check.refuse("x2", f"of shape [{x.shape[1]}, N]", f"shape {tuple(weight.shape)}")
    y = x.float() @ weight.float()
    return y if bias is None else y + bias.float()


def all_to_all_matmul(
    x1: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    bias: Tensor | None = None,
    all2all_axes: Sequence[int] | None = None,
    all2all_out_flag: bool = True,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor]:
    """y and all2all_out. Raises ValueError on arguments that the module's document excludes."""
    _check.dtype("x1", x1, _FLOATS)
    _check.dtype("x2", x2, (x1.dtype,))
    gathered = _gathered(_check, x1, hcom, world_size, all2all_axes)
    y = _product(_check, gathered, x2, bias).to(x1.dtype)
    return y, gathered if all2all_out_flag else gathered.new_empty(0)


def matmul_all_to_all(
    x1: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    bias: Tensor | None = None,
    all2all_axes: Sequence[int] | None = None,
    comm_mode: str | None = None,
) -> Tensor:
    """y. Raises ValueError on arguments that the module's document excludes."""
    _check_back.dtype("x1", x1, _FLOATS)
    _check_back.dtype("x2", x2, (x1.dtype,))
    _check_back.rank("x1", x1, (2,), "[BS, H1]")
    y = _product(_check_back, x1, x2, bias).to(x1.dtype)
    return _spread(_check_back, y, hcom, world_size, all2all_axes)


def _refuse_quantization(
    check: Checks, modes: tuple[int | None, int | None], wanted: tuple[int, int], **given: Tensor | None
) -> None:
    if modes != wanted:
        raise NotImplementedError(
            check.message("x1_quant_mode and x2_quant_mode", f"{wanted}, others are not served", modes)
        )
    for name, value in given.items():
        if value is not None:
            raise NotImplementedError(check.message(name, "left out, it is not served", f"shape {tuple(value.shape)}"))


def _result(check: Checks, number: int | None) -> torch.dtype:
    dtype = torch.float32 if number is None else dtypes.from_number(number)
    if dtype not in _RESULTS:
        check.refuse("y_dtype", f"one of {_RESULTS}", number)
    assert dtype is not None
    return dtype


def _of_float8(check: Checks, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        check.dtype(name, tensor, (torch.float8_e4m3fn, torch.float8_e5m2))


def all_to_all_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    *,
    all2all_out_flag: bool = True,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    common_scale: Tensor | None = None,
    x1_offset: Tensor | None = None,
    x2_offset: Tensor | None = None,
    x1_quant_mode: int | None = None,
    x2_quant_mode: int | None = None,
    common_quant_mode: int | None = None,
    group_sizes: Sequence[int] | None = None,
    all2all_axes: Sequence[int] | None = None,
    comm_quant_dtype: int | None = None,
    x1_quant_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    x1_scale_dtype: int | None = None,
    x2_scale_dtype: int | None = None,
    output_scale_dtype: int | None = None,
    comm_scale_dtype: int | None = None,
    y_dtype: int | None = None,
    comm_mode: str | None = None,
) -> tuple[Tensor, Tensor]:
    """y and all2all_out. Raises NotImplementedError for another way to quantise, ValueError as the module's document says."""
    check = _check_quant
    given = dict(common_scale=common_scale, x1_offset=x1_offset, x2_offset=x2_offset, x1_scale=x1_scale)
    _refuse_quantization(check, (x1_quant_mode, x2_quant_mode), (_DYNAMIC_TOKEN, _CHANNEL), **given)
    check.value("x1_quant_dtype", x1_quant_dtype, tuple(_FLOAT8))
    assert x1_quant_dtype is not None
    return _gathered_float8(
        x1,
        x2,
        x2_scale,
        bias,
        hcom,
        world_size,
        all2all_axes,
        _FLOAT8[x1_quant_dtype],
        _result(check, y_dtype),
        all2all_out_flag,
    )


def _gathered_float8(
    x1: Tensor,
    x2: Tensor,
    x2_scale: Tensor | None,
    bias: Tensor | None,
    group: str,
    ranks: int,
    axes: Sequence[int] | None,
    quantized: torch.dtype,
    result: torch.dtype,
    wants_gathered: bool,
) -> tuple[Tensor, Tensor]:
    check = _check_quant
    check.dtype("x1", x1, _FLOATS)
    _of_float8(check, x2=x2)
    if x2_scale is None:
        check.refuse("x2_scale", "given", None)
    gathered = _gathered(check, x1, group, ranks, axes)
    values = gathered.float()
    scale = values.abs().amax(1, keepdim=True) / torch.finfo(quantized).max
    scale = scale.masked_fill(scale == 0, 1)
    y = _product(check, (values / scale).to(quantized), x2, bias) * scale * x2_scale.float()
    return y.to(result), gathered if wants_gathered else gathered.new_empty(0)


def quant_matmul_all_to_all(
    x1: Tensor,
    x2: Tensor,
    hcom: str,
    world_size: int,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    common_scale: Tensor | None = None,
    x1_offset: Tensor | None = None,
    x2_offset: Tensor | None = None,
    x1_quant_mode: int | None = None,
    x2_quant_mode: int | None = None,
    common_quant_mode: int | None = None,
    group_sizes: Sequence[int] | None = None,
    all2all_axes: Sequence[int] | None = None,
    comm_quant_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    x1_scale_dtype: int | None = None,
    x2_scale_dtype: int | None = None,
    output_scale_dtype: int | None = None,
    comm_scale_dtype: int | None = None,
    y_dtype: int | None = None,
    comm_mode: str | None = None,
) -> Tensor:
    """y. Raises NotImplementedError for another way to quantise, ValueError as the module's document says."""
    check = _check_quant_back
    given = dict(common_scale=common_scale, x1_offset=x1_offset, x2_offset=x2_offset)
    _refuse_quantization(check, (x1_quant_mode, x2_quant_mode), (_TOKEN, _CHANNEL), **given)
    return _spread_float8(x1, x2, x1_scale, x2_scale, bias, hcom, world_size, all2all_axes, _result(check, y_dtype))


def _spread_float8(
    x1: Tensor,
    x2: Tensor,
    x1_scale: Tensor | None,
    x2_scale: Tensor | None,
    bias: Tensor | None,
    group: str,
    ranks: int,
    axes: Sequence[int] | None,
    result: torch.dtype,
) -> Tensor:
    check = _check_quant_back
    _of_float8(check, x1=x1, x2=x2)
    if x1_scale is None or x2_scale is None:
        check.refuse("x1_scale and x2_scale", "given", None)
    y = _product(check, x1, x2, bias) * x1_scale.float().reshape(-1, 1) * x2_scale.float()
    return _spread(check, y.to(result), group, ranks, axes)


def _ge_all_to_all_matmul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    comm_scale: Tensor | None = None,
    x1_offset: Tensor | None = None,
    x2_offset: Tensor | None = None,
    *,
    group: str,
    world_size: int,
    all2all_axes: list = [-2, -1],  # noqa: B006  GE's default
    y_dtype: int = 28,
    x1_quant_mode: int = 0,
    x2_quant_mode: int = 0,
    comm_quant_mode: int = 0,
    x1_quant_dtype: int = 28,
    comm_quant_dtype: int = 28,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    group_size: int = 0,
    alltoall_out_flag: bool = True,
    comm_mode: str = "ai_cpu",
) -> tuple[Tensor, Tensor]:
    """GE AlltoAllMatmul."""
    weight = x2.t() if transpose_x2 else x2
    if not x1_quant_mode and not x2_quant_mode:
        return all_to_all_matmul(x1, weight, group, world_size, bias, all2all_axes, alltoall_out_flag)
    given = dict(comm_scale=comm_scale, x1_offset=x1_offset, x2_offset=x2_offset, x1_scale=x1_scale)
    _refuse_quantization(_check_quant, (x1_quant_mode, x2_quant_mode), (_DYNAMIC_TOKEN, _CHANNEL), **given)
    quantized = {35: torch.float8_e5m2, 36: torch.float8_e4m3fn}  # GE's numbers
    _check_quant.value("x1_quant_dtype", x1_quant_dtype, tuple(quantized))
    sizes = (group, world_size, all2all_axes, quantized[x1_quant_dtype], _GE_RESULTS[y_dtype], alltoall_out_flag)
    return _gathered_float8(x1, weight, x2_scale, bias, *sizes)


def _ge_matmul_all_to_all(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    comm_scale: Tensor | None = None,
    x1_offset: Tensor | None = None,
    x2_offset: Tensor | None = None,
    *,
    group: str,
    world_size: int,
    all2all_axes: list = [-1, -2],  # noqa: B006  GE's default
    y_dtype: int = 28,
    x1_quant_mode: int = 0,
    x2_quant_mode: int = 0,
    comm_quant_mode: int = 0,
    comm_quant_dtype: int = 28,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    group_size: int = 0,
    comm_mode: str = "ai_cpu",
) -> Tensor:
    """GE MatmulAlltoAll."""
    weight = x2.t() if transpose_x2 else x2
    if not x1_quant_mode and not x2_quant_mode:
        return matmul_all_to_all(x1, weight, group, world_size, bias, all2all_axes)
    given = dict(comm_scale=comm_scale, x1_offset=x1_offset, x2_offset=x2_offset)
    _refuse_quantization(_check_quant_back, (x1_quant_mode, x2_quant_mode), (_TOKEN, _CHANNEL), **given)
    return _spread_float8(x1, weight, x1_scale, x2_scale, bias, group, world_size, all2all_axes, _GE_RESULTS[y_dtype])


OPERATOR = of_torch_npu(
    "npu_all_to_all_matmul", all_to_all_matmul, ge=[GeKernel("AlltoAllMatmul", _ge_all_to_all_matmul)]
)
BACK_OPERATOR = of_torch_npu(
    "npu_matmul_all_to_all", matmul_all_to_all, ge=[GeKernel("MatmulAlltoAll", _ge_matmul_all_to_all)]
)
QUANT_OPERATOR = of_torch_npu("npu_all_to_all_quant_matmul", all_to_all_quant_matmul)
QUANT_BACK_OPERATOR = of_torch_npu("npu_quant_matmul_all_to_all", quant_matmul_all_to_all)
