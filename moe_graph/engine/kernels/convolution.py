"""Convolutions and transposed convolutions, channels second (NCHW, NCDHW)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import listed


def spatial(values: list, data_format: str, name: str) -> list[int]:
    """The entries of strides, dilations, ... for the dimensions behind N and C."""
    if not data_format.startswith("NC"):
        raise NotImplementedError(f"data_format must be NCHW or NCDHW, got {data_format!r}")
    if any(value not in (0, 1) for value in values[:2]):
        raise ValueError(f"{name} of the first two dimensions must be 1, got {values}")
    return list(values[2:])


def _padded(x: Tensor, pads: list) -> tuple[Tensor, list[int]]:
    """x padded where its two sides differ, and the pads that are left to do: (before, after) for each spatial dimension."""
    before, after = list(pads[0::2]), list(pads[1::2])
    if before == after:
        return x, before
    reversed_pads = [side for pair in reversed(list(zip(before, after))) for side in pair]
    return functional.pad(x, reversed_pads), [0] * len(before)


def _refuse_quantised(offset_w: Tensor | None, offset_x: int) -> None:
    if offset_w is not None or offset_x:
        raise NotImplementedError("offset_w and offset_x (quantised convolution) are not modelled")


_convolution = listed(torch.ops.aten.convolution.default)


@kernel("Conv2D")
def conv(
    x: Tensor,
    filter: Tensor,  # noqa: A002
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    strides: list,
    pads: list,
    dilations: list = (1, 1, 1, 1),
    groups: int = 1,
    data_format: str = "NHWC",
    offset_x: int = 0,
) -> Tensor:
    """GE Conv2D: convolution of x [N, C, ...] with filter [C_out, C / groups, ...].

    pads are (before, after) of each spatial dimension.
    """
    _refuse_quantised(offset_w, offset_x)
    stride, dilation = spatial(strides, data_format, "strides"), spatial(dilations, data_format, "dilations")
    x, padding = _padded(x, pads)
    return _convolution(x, filter, bias, stride, padding, dilation, False, [0] * len(padding), groups)


@kernel("Conv3D")
def conv_3d(
    x: Tensor,
    filter: Tensor,  # noqa: A002
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    strides: list,
    pads: list,
    dilations: list = (1, 1, 1, 1, 1),
    groups: int = 1,
    data_format: str = "NDHWC",
    offset_x: int = 0,
) -> Tensor:
    """GE Conv3D: Conv2D with three spatial dimensions."""
    settings = {"dilations": dilations, "groups": groups, "data_format": data_format, "offset_x": offset_x}
    return conv(x, filter, bias, offset_w, strides=strides, pads=pads, **settings)


@kernel("Conv2DTranspose")
def conv_transpose(
    input_size: Tensor,
    x: Tensor,
    filter: Tensor,  # noqa: A002
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    strides: list,
    pads: list,
    dilations: list = (1, 1, 1, 1),
    groups: int = 1,
    data_format: str = "NHWC",
    output_padding: list = (0, 0, 0, 0),
    offset_x: int = 0,
) -> Tensor:
    """GE Conv2DTranspose: the transposed convolution of x [N, C, ...] with filter [C, C_out / groups, ...].

    input_size is the shape of the result, which strides, pads, dilations and output_padding give as well. Pads of unlike sides are
    not modelled.
    """
    _refuse_quantised(offset_w, offset_x)
    before, after = list(pads[0::2]), list(pads[1::2])
    if before != after:
        raise NotImplementedError(f"pads must be the same on both sides, got {pads}")
    stride, dilation = spatial(strides, data_format, "strides"), spatial(dilations, data_format, "dilations")
    extra = spatial(output_padding, data_format, "output_padding")
    result = _convolution(x, filter, bias, stride, before, dilation, True, extra, groups)
    expected = input_size.tolist()
    if any(expected) and list(result.shape) != expected:
        raise ValueError(f"input_size is {expected}, but strides, pads and filter give {list(result.shape)}")
    return result


@kernel("Conv3DTranspose")
def conv_3d_transpose(
    input_size: Tensor,
    x: Tensor,
    filter: Tensor,  # noqa: A002
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    strides: list,
    pads: list,
    dilations: list = (1, 1, 1, 1, 1),
    groups: int = 1,
    data_format: str = "NDHWC",
    output_padding: list = (0, 0, 0, 0, 0),
    offset_x: int = 0,
) -> Tensor:
    """GE Conv3DTranspose: Conv2DTranspose with three spatial dimensions."""
    settings = {"dilations": dilations, "groups": groups, "data_format": data_format, "offset_x": offset_x}
    settings["output_padding"] = output_padding
    return conv_transpose(input_size, x, filter, bias, offset_w, strides=strides, pads=pads, **settings)
