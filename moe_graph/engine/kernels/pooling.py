"""Average and maximum over windows, and their gradients. Channels second (NCHW)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import listed


def _windows(
    ksize: list, strides: list, pads: list, padding_mode: str, data_format: str, global_pooling: bool
) -> tuple:
    """Kernel, stride and padding of the two spatial dimensions."""
    if data_format != "NCHW" or padding_mode != "CALCULATED" or global_pooling:
        raise NotImplementedError(
            f"only data_format NCHW, padding_mode CALCULATED and no global_pooling are modelled, got {data_format}, {padding_mode}, "
            f"{global_pooling}"
        )
    if pads[0] != pads[1] or pads[2] != pads[3]:
        raise NotImplementedError(f"pads must be the same on both sides, got {pads}")
    return list(ksize[2:]), list(strides[2:]), [pads[0], pads[2]]


@kernel("AvgPoolV2")
def avg_pool_v2(
    x: Tensor,
    *,
    ksize: list,
    strides: list,
    padding_mode: str = "CALCULATED",
    pads: list = (0, 0, 0, 0),
    data_format: str = "NCHW",
    global_pooling: bool = False,
    ceil_mode: bool = False,
    exclusive: bool = True,
    divisor_override: int = 0,
) -> Tensor:
    """GE AvgPoolV2: means over windows; exclusive leaves padding out of the count, divisor_override (not 0) takes its place."""
    window = _windows(ksize, strides, pads, padding_mode, data_format, global_pooling)
    return functional.avg_pool2d(x, *window, ceil_mode, not exclusive, divisor_override or None)


@kernel("AvgPoolV2Grad")
def avg_pool_v2_grad(
    orig_input_shape: Tensor,
    input_grad: Tensor,
    *,
    ksize: list,
    strides: list,
    padding_mode: str = "CALCULATED",
    pads: list = (0, 0, 0, 0),
    data_format: str = "NCHW",
    global_pooling: bool = False,
    ceil_mode: bool = False,
    exclusive: bool = True,
    divisor_override: int = 0,
) -> Tensor:
    """GE AvgPoolV2Grad: gradient of AvgPoolV2's x, which had shape orig_input_shape."""
    window = _windows(ksize, strides, pads, padding_mode, data_format, global_pooling)
    like = input_grad.new_empty(orig_input_shape.tolist())
    return listed(torch.ops.aten.avg_pool2d_backward.default)(
        input_grad, like, *window, ceil_mode, not exclusive, divisor_override or None
    )


@kernel("AdaptiveAvgPool2d")
def adaptive_avg_pool_2d(x: Tensor, *, output_size: list) -> Tensor:
    """GE AdaptiveAvgPool2d: means over windows chosen so that the result has output_size."""
    return functional.adaptive_avg_pool2d(x, output_size)


@kernel("AdaptiveAvgPool2dGrad")
def adaptive_avg_pool_2d_grad(input_grad: Tensor, *, orig_input_shape: list) -> Tensor:
    """GE AdaptiveAvgPool2dGrad: gradient of AdaptiveAvgPool2d's x, which had shape orig_input_shape."""
    backward = listed(torch.ops.aten._adaptive_avg_pool2d_backward.default)
    return backward(input_grad, input_grad.new_empty(orig_input_shape))
