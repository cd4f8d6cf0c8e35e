"""Maximum over windows, the place it was found at, and the gradient. Channels second (NCHW, NCDHW).

A place is the index in the flattened spatial dimensions of x. The device's MaxPoolWithArgmaxV1 writes a mask that only
MaxPoolGradWithArgmaxV1 reads; torchair gives it to nothing else. Source: the documents of MaxPoolWithArgmaxV3 and
MaxPool3DWithArgmaxV2 (ops-nn, pooling).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moe_graph.engine import dtypes
from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import listed

aten = torch.ops.aten


def _check_format(data_format: str, allowed: str) -> None:
    if data_format != allowed:
        raise NotImplementedError(f"data_format must be {allowed}, got {data_format!r}")


def _check_places(argmax: Tensor, x: Tensor, spatial: int) -> Tensor:
    """The places as torch takes them, which adds to whatever memory they lead to."""
    size = x.shape[-spatial:].numel()
    if argmax.numel() and not 0 <= int(argmax.min()) <= int(argmax.max()) < size:
        raise ValueError(f"argmax must be from 0 to {size - 1}, got {int(argmax.min())} to {int(argmax.max())}")
    return argmax.long()


def _inner(*lists: list) -> list[list[int]]:
    """The entries for H and W of [1, H, W, 1], as MaxPoolWithArgmaxV1 has them."""
    return [list(values[1:3]) for values in lists]


@kernel("MaxPoolWithArgmaxV1")
def max_pool_with_argmax_v1(
    x: Tensor,
    *,
    ksize: list,
    strides: list,
    pads: list,
    dtype: int = 3,
    dilation: list = (1, 1, 1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """GE MaxPoolWithArgmaxV1: the maximum of each window, and its place, int32. All lists are [1, H, W, 1]."""
    values, places = functional.max_pool2d_with_indices(x, *_inner(ksize, strides, pads, dilation), ceil_mode)
    return values, places.to(torch.int32)


@kernel("MaxPoolGradWithArgmaxV1")
def max_pool_grad_with_argmax_v1(
    x: Tensor,
    grad: Tensor,
    argmax: Tensor,
    *,
    ksize: list,
    strides: list,
    pads: list,
    dtype: int = 3,
    dilation: list = (1, 1, 1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """GE MaxPoolGradWithArgmaxV1: grad added at the places that MaxPoolWithArgmaxV1 found."""
    windows = _inner(ksize, strides, pads, dilation)
    return listed(aten.max_pool2d_with_indices_backward.default)(
        grad, x, *windows, ceil_mode, _check_places(argmax, x, 2)
    )


@kernel("MaxPoolWithArgmaxV3")
def max_pool_with_argmax_v3(
    x: Tensor,
    *,
    ksize: list,
    strides: list,
    pads: list,
    dtype: int = 3,
    dilation: list = (1, 1),
    ceil_mode: bool = False,
    data_format: str = "NCHW",
) -> tuple[Tensor, Tensor]:
    """GE MaxPoolWithArgmaxV3: the maximum of each window, and its place, of type dtype (int32 or int64). All lists are [H, W]."""
    _check_format(data_format, "NCHW")
    values, places = functional.max_pool2d_with_indices(x, ksize, strides, pads, dilation, ceil_mode)
    return values, places.to(dtypes.from_ge(dtype).torch)


@kernel("MaxPoolGradWithArgmaxV3")
def max_pool_grad_with_argmax_v3(
    x: Tensor,
    grad: Tensor,
    argmax: Tensor,
    *,
    ksize: list,
    strides: list,
    pads: list,
    dtype: int = 3,
    dilation: list = (1, 1),
    ceil_mode: bool = False,
    data_format: str = "NCHW",
) -> Tensor:
    """GE MaxPoolGradWithArgmaxV3: grad added at the places argmax."""
    _check_format(data_format, "NCHW")
    return listed(aten.max_pool2d_with_indices_backward.default)(
        grad, x, ksize, strides, pads, dilation, ceil_mode, _check_places(argmax, x, 2)
    )


@kernel("MaxPool3DWithArgmaxV2")
def max_pool_3d_with_argmax_v2(
    x: Tensor,
    *,
    ksize: list,
    strides: list,
    pads: list,
    dilation: list = (1, 1, 1),
    ceil_mode: bool = False,
    data_format: str = "NCDHW",
    dtype: int = 3,
) -> tuple[Tensor, Tensor]:
    """GE MaxPool3DWithArgmaxV2: the maximum of each window, and its place, of type dtype (int32 or int64). All lists are [D, H, W]."""
    _check_format(data_format, "NCDHW")
    values, places = functional.max_pool3d_with_indices(x, ksize, strides, pads, dilation, ceil_mode)
    return values, places.to(dtypes.from_ge(dtype).torch)
