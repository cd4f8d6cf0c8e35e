"""`npu_quant_conv2d(input, weight, scale, strides, pads, dilations, groups, offset_x, round_mode, output_dtype, bias, ...)`: int8.

    input [N, C, H, W], weight [Co, C / groups, Kh, Kw] int8   scale [Co] int64 of npu_trans_quant_param, or float32   bias [Co]

    int32 bias: y = (conv(input, weight) + bias) * scale     float32: conv * scale + bias     output_dtype float16, bfloat16, float32

Sources: the document of aclnnQuantConvolution (ops-nn), op-plugin's C++ and test; an int32 bias counts in the sums' units, as in
npu_quant_matmul. Sums are exact, the rest float32, rounded once. Not served: float8 and hifloat8, offset_x other than 0, round_mode other
than "rint", offset.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from moe_graph.operators import dtypes
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel
from moe_graph.operators.quantization.trans_quant_param import unpacked

_check = Checks("npu_quant_conv2d")
_OF_PROTO = {2: torch.float16, 27: torch.bfloat16, 1: torch.float32}
_RESULTS = tuple(_OF_PROTO.values())


def quant_conv2d(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
    offset_x: int = 0,
    round_mode: str = "rint",
    output_dtype: int | None = None,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
    input_dtype: int | None = None,
    weight_dtype: int | None = None,
) -> Tensor:
    """As the module's document says. Raises ValueError, or NotImplementedError for what it says is not served."""
    if input_dtype is not None or weight_dtype is not None:
        raise NotImplementedError("npu_quant_conv2d: input_dtype and weight_dtype must be None, hifloat8 is not served")
    dtype = None if output_dtype is None else dtypes.from_number(output_dtype)
    if dtype not in _RESULTS:
        _check.refuse("output_dtype", f"one of {_RESULTS}", None if output_dtype is None else dtypes.name(output_dtype))
    assert dtype is not None
    return _convolved(input, weight, scale, bias, offset, strides, pads, dilations, groups, offset_x, round_mode, dtype)


def _convolved(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    offset: Tensor | None,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    offset_x: int,
    round_mode: str,
    dtype: torch.dtype,
) -> Tensor:
    for name, tensor in (("input", x), ("weight", weight)):
        if tensor.dtype != torch.int8:
            raise NotImplementedError(f"npu_quant_conv2d: {name} must be int8, got {tensor.dtype}")
        _check.rank(name, tensor, (4,), "[N, C, H, W]")
    if offset is not None or offset_x or round_mode != "rint":
        raise NotImplementedError(
            f"npu_quant_conv2d: offset must be None, offset_x 0, round_mode 'rint', got {offset}, {offset_x}, {round_mode!r}"
        )
    for name, values, least in (("strides", strides, 1), ("pads", pads, 0), ("dilations", dilations, 1)):
        if len(values) != 2 or min(values) < least:
            _check.refuse(name, f"two numbers >= {least}", list(values))
    factors = unpacked(scale)[0]
    for name, parameter in (("scale", factors), ("bias", bias)):
        if parameter is not None and parameter.numel() != weight.shape[0]:
            _check.refuse(name, f"of {weight.shape[0]} elements", f"shape {tuple(parameter.shape)}")
    # float64 holds the sums of int8 products exactly
    y = functional.conv2d(x.double(), weight.double(), None, tuple(strides), tuple(pads), tuple(dilations), groups)
    if bias is not None and not bias.is_floating_point():
        y, bias = y + bias.double().view(-1, 1, 1), None
    y = y.float() * factors.view(-1, 1, 1)
    return (y if bias is None else y + bias.float().view(-1, 1, 1)).to(dtype)


def _ge_quant_conv2d(
    x: Tensor,
    filter: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    dtype: int,
    strides: list,
    pads: list,
    dilations: list = [1, 1, 1, 1],  # noqa: B006  GE's default
    groups: int = 1,
    data_format: str = "NHWC",
    offset_x: int = 0,
    round_mode: str = "rint",
) -> Tensor:
    """GE QuantConv2D as torchair writes it: NCHW, the same padding before and behind, `dtype` by its number of the protobuf."""
    if dtype not in _OF_PROTO:
        raise NotImplementedError(f"QuantConv2D: dtype must be one of {_OF_PROTO}, got {dtype}")
    if data_format != "NCHW" or pads[0] != pads[1] or pads[2] != pads[3]:
        raise NotImplementedError(
            f"QuantConv2D: data_format must be NCHW and pads the same on both sides, got {data_format} and {pads}"
        )
    return _convolved(
        x,
        filter,
        scale,
        bias,
        offset,
        strides[2:],
        pads[::2],
        dilations[2:],
        groups,
        offset_x,
        round_mode,
        _OF_PROTO[dtype],
    )


OPERATOR = of_torch_npu("npu_quant_conv2d", quant_conv2d, ge=[GeKernel("QuantConv2D", _ge_quant_conv2d)])
