"""`npu_dequant_swiglu_quant(x, ...)`: what stands between the two int8 grouped matrix products: dequantize, swiglu, quantize.

    x [..., 2H] int32, or float16 or bfloat16 -> y [..., H] int8, scale [...] float32 (0 with static quantization, which has none)
    dequantize  v = (x + int32 bias) * weight_scale * activation_scale + floating point bias; a floating point x has none of them
    swiglu      mode 0: silu(A) * B, A the left half if activate_left, else the right
                mode 1: a = min(A, clamp_limit), b = B within +-clamp_limit, a * sigmoid(glu_alpha * a) * (b + glu_bias);
                        A are the even columns, B the odd ones
    quantize    quant_mode 1: v * quant_scale, then a scale for each row     0: v / quant_scale + quant_offset
    group_index [G] tokens of each group; weight_scale [G, 2H] and quant_scale [G, H] or [G] then have a row for each group; without it
                weight_scale is [2H], [1, 2H] or [2H, 1], and quant_scale likewise

Sources: the operator's page in the torch_npu documentation, the document of aclnnDequantSwigluQuantV2, torch_npu's fake implementation.
Intermediate values are float32. Rows of x beyond the groups' sum are 0 here and not written on a device. The limits of the device's
kernels on H are not checked. Not served: outputs other than int8, round modes other than rint, activate_dim other than the last.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

from moe_graph.foundation import settings
from moe_graph.operators import dtypes
from moe_graph.operators.activation.swiglu import gated, gated_in_pairs
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import declare
from moe_graph.operators.ge import GeKernel, GeType
from moe_graph.operators.quantization.int8 import (
    check_values,
    dynamic_int8,
    group_of_rows,
    only_int8,
    to_int8,
)

_check = Checks("npu_dequant_swiglu_quant")
FLOATS = (torch.float16, torch.bfloat16)
SCALES = (torch.float32, torch.float16, torch.bfloat16)
STATIC, DYNAMIC = 0, 1


class Options(NamedTuple):
    """The keyword arguments, with the schema's defaults."""

    weight_scale: Tensor | None = None
    activation_scale: Tensor | None = None
    bias: Tensor | None = None
    quant_scale: Tensor | None = None
    quant_offset: Tensor | None = None
    group_index: Tensor | None = None
    activate_left: bool = False
    quant_mode: int = STATIC
    dst_type: int | None = None
    round_mode: int | None = None
    activate_dim: int | None = None
    swiglu_mode: int = 0
    clamp_limit: float = 7.0
    glu_alpha: float = 1.702
    glu_bias: float = 1.0


def _check_arguments(x: Tensor, options: Options) -> None:
    _check.dtype("x", x, (torch.int32, *FLOATS))
    _check.rank("x", x, range(2, 9), "[..., 2H] of 2 to 8 dimensions")
    _check.size(x.shape[-1] % 2 == 0, "x", "of even last size", x)
    _check_modes(x, options)
    _check_groups(x, options)
    width = x.shape[-1]
    if x.dtype == torch.int32:
        if options.weight_scale is None:
            _check.refuse("weight_scale", "given for int32 x", None)
    else:
        for name in ("weight_scale", "activation_scale", "bias"):
            _check.absent(name, getattr(options, name), "x is not int32")
    _check_rows("weight_scale", options.weight_scale, (torch.float32,), options, width, "2H")
    _check_rows("bias", options.bias, (torch.int32, *SCALES), options, width, "2H")
    _check_rows("quant_scale", options.quant_scale, SCALES, options, width // 2, "H", or_one=True)
    _check_rows("quant_offset", options.quant_offset, SCALES, options, width // 2, "H", or_one=True)
    scale = options.activation_scale
    if scale is not None:
        _check.dtype("activation_scale", scale, (torch.float32,))
        _check.device("activation_scale", scale, "x", x)
        expected = x.shape[:-1]
        _check.rank("activation_scale", scale, (x.dim() - 1, x.dim()), "[...] or [..., 1], x's without the last size")
        for size, own in zip(scale.shape, (*expected, 1)):
            _check.size(
                size == own, "activation_scale", f"of shape {tuple(expected)}, x's without the last size", scale
            )


def _check_modes(x: Tensor, options: Options) -> None:
    _check.value("quant_mode", options.quant_mode, (STATIC, DYNAMIC))
    if options.quant_mode == DYNAMIC:
        _check.absent("quant_offset", options.quant_offset, "with quant_mode 1")
    else:
        for name in ("quant_scale", "quant_offset"):
            if getattr(options, name) is None:
                _check.refuse(name, "given with quant_mode 0", None)
        scale, offset = options.quant_scale, options.quant_offset
        if scale is not None and offset is not None and scale.shape != offset.shape:
            _check.refuse("quant_offset", f"of quant_scale's shape {tuple(scale.shape)}", offset.shape)
    if options.dst_type is not None and dtypes.from_number(options.dst_type) != torch.int8:
        _check.refuse("dst_type", "torch.int8 (no other type has a fallback)", dtypes.name(options.dst_type))
    if options.round_mode not in (None, 0):
        _check.refuse("round_mode", "0, rint (int8 has no other)", options.round_mode)
    if options.activate_dim not in (None, -1, x.dim() - 1):
        _check.refuse("activate_dim", f"-1 or {x.dim() - 1}, the last (no other has a fallback)", options.activate_dim)
    _check.value("swiglu_mode", options.swiglu_mode, (0, 1))
    if options.swiglu_mode == 1:
        if not options.activate_left:
            _check.refuse("activate_left", "True with swiglu_mode 1", options.activate_left)
        if not (options.clamp_limit > 0 and math.isfinite(options.clamp_limit)):
            _check.refuse("clamp_limit", "finite and above 0", options.clamp_limit)


def _check_groups(x: Tensor, options: Options) -> None:
    groups = options.group_index
    if groups is None:
        return
    _check.dtype("group_index", groups, (torch.int64,))
    _check.rank("group_index", groups, (1,), "[G]")
    _check.device("group_index", groups, "x", x)
    _check.size(groups.shape[0] > 0, "group_index", "of at least one group", groups)
    if options.quant_mode != DYNAMIC:
        _check.refuse("quant_mode", "1 with group_index", options.quant_mode)
    _check.absent("bias", options.bias, "with group_index")


def _check_rows(
    name: str,
    tensor: Tensor | None,
    allowed: tuple[torch.dtype, ...],
    options: Options,
    width: int | torch.SymInt,
    symbol: str,
    or_one: bool = False,
) -> None:
    """[G, width], and where there is one group also [width]. or_one: also one value for a group, [G]."""
    if tensor is None:
        return
    groups = 1 if options.group_index is None else options.group_index.shape[0]
    shapes = f"[G, {symbol}]{' or [G]' if or_one else ''} with G = {groups} groups, {symbol} = {width}"
    _check.dtype(name, tensor, allowed)
    _check.rank(name, tensor, (1, 2), shapes)
    if tensor.dim() == 2 and options.group_index is None and tensor.shape[1] == 1:
        _check.size(tensor.shape[0] == width, name, f"of shape {shapes}, or [{symbol}, 1] without group_index", tensor)
    elif tensor.dim() == 2:
        _check.size(tensor.shape[0] == groups, name, f"of shape {shapes}", tensor)
        _check.size(tensor.shape[1] == width, name, f"of shape {shapes}", tensor)
    elif not (or_one and tensor.shape[0] == groups):
        _check.size(tensor.shape[0] == width, name, f"of shape {shapes}, or [{symbol}] for one group", tensor)
        _check.size(groups == 1, name, f"of shape {shapes}", tensor)


def fake(x: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
    """y of the input's shape with half its last size, int8, and scale, float32."""
    _check_arguments(x, Options(**keywords))
    leading = x.shape[:-1]
    return x.new_empty((*leading, x.shape[-1] // 2), dtype=torch.int8), x.new_empty(leading, dtype=torch.float32)


def dequant_swiglu_quant(x: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
    """y and scale, as the module's document says; the keyword arguments are the operator's.

    Raises ValueError on arguments that the document excludes or that are not served.
    """
    options = Options(**keywords)
    _check_arguments(x, options)
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    group = _group(rows, options.group_index)
    height = max(1, _BLOCK // max(1, rows.shape[1]))
    if len(rows) <= height:
        y, scale = _quantized(rows, group, options)
    else:
        y, scale = (
            rows.new_empty((len(rows), rows.shape[1] // 2), dtype=torch.int8),
            rows.new_empty((len(rows), 1), dtype=torch.float32),
        )
        tokens = options.activation_scale
        for start in range(0, len(rows), height):
            part = slice(start, start + height)
            of_part = options if tokens is None else options._replace(activation_scale=tokens.reshape(-1, 1)[part])
            y[part], scale[part] = _quantized(rows[part], None if group is None else group[part], of_part)
    if group is not None and options.group_index is not None and _may_end_before(options.group_index, len(rows)):
        beyond = group.eq(len(options.group_index)).unsqueeze(1)
        y, scale = y.masked_fill(beyond, 0), scale.masked_fill(beyond, 0)
    return y.view(*x.shape[:-1], y.shape[-1]), scale.view(x.shape[:-1])


# Elements that are taken through all steps together: what lies between the steps stays in the CPU's cache.
_BLOCK = 1 << 16


def _quantized(rows: Tensor, group: Tensor | None, options: Options) -> tuple[Tensor, Tensor]:
    """y and scale of some rows [n, 2H], whose groups are `group` and whose activation_scale is the options'."""
    values = _swiglu(_dequantized(rows, group, options), options)
    scales = _of_rows(options.quant_scale, group, options)
    if options.quant_mode == DYNAMIC:
        return dynamic_int8(values if scales is None else values * scales)
    offsets = _of_rows(options.quant_offset, group, options)
    assert scales is not None and offsets is not None
    return to_int8(values / scales + offsets), values.new_zeros((len(rows), 1))


def _group(rows: Tensor, sizes: Tensor | None) -> Tensor | None:
    if sizes is None:
        return None
    valid = (sizes >= 0).all() & (sizes.sum() <= len(rows))
    check_values(_check, "group_index", sizes, valid, f"non-negative, in all up to x's {len(rows)} tokens")
    return group_of_rows(sizes.cumsum(0), len(rows))


def _may_end_before(sizes: Tensor, rows: int) -> bool:
    """May there be rows beyond the last group? Where looking at values costs nothing they are looked at."""
    return not settings.checks_values(sizes) or detect_fake_mode([sizes]) is not None or int(sizes.sum()) < rows


def _of_rows(tensor: Tensor | None, group: Tensor | None, options: Options) -> Tensor | None:
    """What is given for each group, as float32 for each token, or once where there is one group."""
    if tensor is None:
        return None
    tensor = tensor.float()
    if group is None or options.group_index is None:
        return tensor.reshape(-1)
    if len(options.group_index) == 1:
        return tensor
    of_group = tensor if tensor.dim() == 2 else tensor.unsqueeze(1)
    return of_group.index_select(0, group.clamp_max(len(tensor) - 1))


def _dequantized(rows: Tensor, group: Tensor | None, options: Options) -> Tensor:
    if rows.dtype != torch.int32:
        return rows.float()
    bias = options.bias
    if bias is not None and bias.dtype == torch.int32:
        rows, bias = rows + bias, None
    weight_scale = _of_rows(options.weight_scale, group, options)
    assert weight_scale is not None  # checked: it is given for int32 x
    values = rows.float() * weight_scale
    if options.activation_scale is not None:
        values = values * options.activation_scale.reshape(len(rows), 1)
    return values if bias is None else values + bias.float()


def _swiglu(values: Tensor, options: Options) -> Tensor:
    if options.swiglu_mode == 0:
        return gated(values, -1, options.activate_left)
    return gated_in_pairs(values, options.clamp_limit, options.glu_alpha, options.glu_bias)


def _ge_dequant_swiglu_quant(
    x: Tensor,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    group_index: Tensor | None = None,
    *,
    activate_left: bool = False,
    quant_mode: str = "static",
    dst_type: GeType = 2,  # type: ignore[assignment]
    round_mode: str = "rint",
    activate_dim: int = -1,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """GE DequantSwigluQuant: dequantize, swiglu, quantize to int8."""
    only_int8(dst_type)
    if round_mode != "rint":
        raise ValueError(f"round_mode must be 'rint' for int8, got {round_mode!r}")
    modes = {"static": STATIC, "dynamic": DYNAMIC}
    if quant_mode not in modes:
        raise ValueError(f"quant_mode must be one of {list(modes)}, got {quant_mode!r}")
    return dequant_swiglu_quant(
        x,
        weight_scale=weight_scale,
        activation_scale=activation_scale,
        bias=bias,
        quant_scale=quant_scale,
        quant_offset=quant_offset,
        group_index=group_index,
        activate_left=activate_left,
        quant_mode=modes[quant_mode],
        activate_dim=activate_dim,
        swiglu_mode=swiglu_mode,
        clamp_limit=clamp_limit,
        glu_alpha=glu_alpha,
        glu_bias=glu_bias,
    )


OPERATOR = declare(
    "npu_dequant_swiglu_quant(Tensor x, *, Tensor? weight_scale=None, Tensor? activation_scale=None, Tensor? bias=None, "
    "Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? group_index=None, bool activate_left=False, "
    "int quant_mode=0, int? dst_type=None, int? round_mode=None, int? activate_dim=None, int swiglu_mode=0, "
    "float clamp_limit=7., float glu_alpha=1.702, float glu_bias=1.) -> (Tensor, Tensor)",
    fake=fake,
    fallback=dequant_swiglu_quant,
    ge=[GeKernel("DequantSwigluQuant", _ge_dequant_swiglu_quant)],
)
