"""Images resized and sampled at a grid of places, and their gradients. Channels second."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.operators.rounding import listed

aten = torch.ops.aten
_INTERPOLATION = {"bilinear": 0, "nearest": 1, "bicubic": 2}
_PADDING = {"zeros": 0, "border": 1, "reflection": 2}


def _plain_only(align_corners: bool, half_pixel_centers: bool) -> None:
    if align_corners or half_pixel_centers:
        raise NotImplementedError("align_corners and half_pixel_centers are not modelled for nearest neighbours")


@kernel("ResizeNearestNeighborV2")
def resize_nearest_neighbor_v2(
    x: Tensor, size: Tensor, *, align_corners: bool = False, half_pixel_centers: bool = False
) -> Tensor:
    """GE ResizeNearestNeighborV2: x [N, C, H, W] at size [2]: the element at floor(place * old size / new size)."""
    _plain_only(align_corners, half_pixel_centers)
    return aten.upsample_nearest2d(x, size.tolist())


@kernel("ResizeNearestNeighborV2Grad")
def resize_nearest_neighbor_v2_grad(
    grads: Tensor, size: Tensor, *, align_corners: bool = False, half_pixel_centers: bool = False
) -> Tensor:
    """GE ResizeNearestNeighborV2Grad: gradient of ResizeNearestNeighborV2's x, whose H and W were size [2]."""
    _plain_only(align_corners, half_pixel_centers)
    return aten.upsample_nearest2d_backward(grads, grads.shape[2:], [*grads.shape[:2], *size.tolist()])


@kernel("GridSampler2D")
def grid_sampler_2d(
    x: Tensor,
    grid: Tensor,
    *,
    interpolation_mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """GE GridSampler2D: x [N, C, H, W] at the places grid [N, H', W', 2] names, from -1 to 1."""
    return listed(aten.grid_sampler_2d.default)(
        x, grid, _INTERPOLATION[interpolation_mode], _PADDING[padding_mode], align_corners
    )


@kernel("GridSampler2DGrad")
def grid_sampler_2d_grad(
    grad: Tensor,
    x: Tensor,
    grid: Tensor,
    *,
    interpolation_mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]:
    """GE GridSampler2DGrad: gradients of GridSampler2D's x and grid."""
    modes = (_INTERPOLATION[interpolation_mode], _PADDING[padding_mode], align_corners)
    return listed(aten.grid_sampler_2d_backward.default)(grad, x, grid, *modes, [True, True])


@kernel("GridSampler3D")
def grid_sampler_3d(
    x: Tensor,
    grid: Tensor,
    *,
    interpolation_mode: str = "bilinear",
    padding_mode: str = "zeros",
    data_format: str = "NCDHW",
    align_corners: bool = False,
) -> Tensor:
    """GE GridSampler3D: x [N, C, D, H, W] at the places grid [N, D', H', W', 3] names, from -1 to 1."""
    if data_format != "NCDHW":
        raise NotImplementedError(f"data_format must be NCDHW, got {data_format!r}")
    return listed(aten.grid_sampler_3d.default)(
        x, grid, _INTERPOLATION[interpolation_mode], _PADDING[padding_mode], align_corners
    )
