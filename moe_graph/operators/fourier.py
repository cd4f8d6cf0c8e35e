"""Fourier transforms of tensors without elements, which the CPU's library refuses and a device takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree


def of_nothing_too(transform: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The transform; of a tensor without elements one without elements, of the shape and dtype that the transform has on meta tensors."""

    def transformed(x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        if x.numel():
            return transform(x, *arguments, **keywords)
        arguments, keywords = _pytree.tree_map_only(Tensor, lambda t: t.to("meta"), (arguments, keywords))
        return torch.empty_like(transform(x.to("meta"), *arguments, **keywords), device=x.device)

    return transformed
