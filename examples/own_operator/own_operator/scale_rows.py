"""`own_operator::scale_rows(Tensor x, Tensor scale, Tensor? bias=None, float factor=1.0) -> Tensor`: y = x * scale[:, None] * factor + bias

    x [A, H] float16, bfloat16, float32   scale [A] float32   bias [H] float32   y like x

It is computed in float32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIBRARY = torch.library.Library("own_operator", "FRAGMENT")
LIBRARY.define("scale_rows(Tensor x, Tensor scale, Tensor? bias=None, float factor=1.0) -> Tensor")


def reference(x: Tensor, scale: Tensor, bias: Tensor | None = None, factor: float = 1.0) -> Tensor:
    """The operator, composed of torch's own: on any device that has no kernel for it."""
    if x.dim() != 2 or scale.shape != x.shape[:1]:
        raise ValueError(f"scale must be [A] for x [A, H], got {list(scale.shape)} for x {list(x.shape)}")
    y = x.float() * scale[:, None] * factor
    return (y if bias is None else y + bias).to(x.dtype)


def fake(x: Tensor, scale: Tensor, bias: Tensor | None = None, factor: float = 1.0) -> Tensor:
    """Shapes and dtypes alone."""
    return torch.empty_like(x)


LIBRARY.impl("scale_rows", reference, "CompositeExplicitAutograd")
torch.library.register_fake("own_operator::scale_rows", fake, lib=LIBRARY)
