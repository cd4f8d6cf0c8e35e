"""Gradients of convolutions, channels second (NCHW, NCDHW). Attributes as those of Conv2D and Conv3D."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.kernels.convolution import spatial
from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import listed


def _settings(strides: list, pads: list, dilations: list, groups: int, data_format: str) -> tuple:
    """Stride to groups, as torch takes them."""
    before, after = list(pads[0::2]), list(pads[1::2])
    if before != after:
        raise NotImplementedError(f"pads must be the same on both sides, got {pads}")
    stride, dilation = spatial(strides, data_format, "strides"), spatial(dilations, data_format, "dilations")
    return stride, before, dilation, False, [0] * len(before), groups


def _gradient(wanted: int, out_backprop: Tensor, x: Tensor, weight: Tensor, settings: tuple) -> Tensor:
    mask = [wanted == 0, wanted == 1, False]
    return listed(torch.ops.aten.convolution_backward.default)(out_backprop, x, weight, None, *settings, mask)[wanted]


@kernel("Conv2DBackpropInput")
def conv_2d_backprop_input(
    input_size: Tensor,
    filter: Tensor,  # noqa: A002
    out_backprop: Tensor,
    *,
    strides: list,
    pads: list,
    dilations: list = (1, 1, 1, 1),
    groups: int = 1,
    data_format: str = "NHWC",
) -> Tensor:
    """GE Conv2DBackpropInput: gradient of the x of Conv2D, which had shape input_size."""
    x = out_backprop.new_empty(input_size.tolist())
    return _gradient(0, out_backprop, x, filter, _settings(strides, pads, dilations, groups, data_format))


@kernel("Conv2DBackpropFilter")
def conv_2d_backprop_filter(
    x: Tensor,
    filter_size: Tensor,
    out_backprop: Tensor,
    *,
    strides: list,
    pads: list,
    dilations: list = (1, 1, 1, 1),
    groups: int = 1,
    data_format: str = "NHWC",
) -> Tensor:
    """GE Conv2DBackpropFilter: gradient of the filter of Conv2D, which had shape filter_size."""
    weight = x.new_empty(filter_size.tolist())
    return _gradient(1, out_backprop, x, weight, _settings(strides, pads, dilations, groups, data_format))


@kernel("Conv3DBackpropInput")
def conv_3d_backprop_input(
    input_size: Tensor,
    filter: Tensor,  # noqa: A002
    out_backprop: Tensor,
    *,
    strides: list,
    pads: list,
    dilations: list = (1, 1, 1, 1, 1),
    groups: int = 1,
    data_format: str = "NDHWC",
) -> Tensor:
    """GE Conv3DBackpropInput: gradient of the x of Conv3D, which had shape input_size."""
    x = out_backprop.new_empty(input_size.tolist())
    return _gradient(0, out_backprop, x, filter, _settings(strides, pads, dilations, groups, data_format))


@kernel("Conv3DBackpropFilter")
def conv_3d_backprop_filter(
    x: Tensor,
    filter_size: Tensor,
    out_backprop: Tensor,
    *,
    strides: list,
    pads: list,
    dilations: list = (1, 1, 1, 1, 1),
    groups: int = 1,
    data_format: str = "NDHWC",
) -> Tensor:
    """GE Conv3DBackpropFilter: gradient of the filter of Conv3D, which had shape filter_size."""
    weight = x.new_empty(filter_size.tolist())
    return _gradient(1, out_backprop, x, weight, _settings(strides, pads, dilations, groups, data_format))
