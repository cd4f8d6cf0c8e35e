"""Padding and its gradient. Pads are (before, after) for each dimension, the first dimension first."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel

# Mode -> the place that the padded place p stands for, in a dimension of this size.
_PLACES = {
    "reflect": lambda p, size: (size - 1) - ((p % max(1, 2 * size - 2)) - (size - 1)).abs(),
    "symmetric": lambda p, size: torch.where(p % (2 * size) < size, p % (2 * size), 2 * size - 1 - p % (2 * size)),
    "edge": lambda p, size: p.clamp(0, size - 1),
    "circular": lambda p, size: p % size,
}


def _pairs(paddings: Tensor, contiguous: bool) -> list[tuple[int, int]]:
    numbers = paddings.reshape(-1).tolist()
    if not contiguous:  # all of before, then all of after
        half = len(numbers) // 2
        return list(zip(numbers[:half], numbers[half:]))
    return list(zip(numbers[0::2], numbers[1::2]))


def _check_mode(mode: str) -> None:
    if mode not in _PLACES:
        raise NotImplementedError(f"mode must be constant or one of {', '.join(_PLACES)}, got {mode!r}")


def _places(size: int, before: int, after: int, mode: str) -> Tensor:
    return _PLACES[mode](torch.arange(-before, size + after), size)


@kernel("PadV3")
def pad_v3(
    x: Tensor,
    paddings: Tensor,
    constant_values: Tensor | None = None,
    *,
    mode: str = "constant",
    paddings_contiguous: bool = True,
) -> Tensor:
    """GE PadV3: x with paddings around it: constant_values (0 if absent), or the elements that mode "reflect", "edge", ... names.

    paddings_contiguous: pads stand as pairs of each dimension, else all of before come first. Negative pads take away.
    """
    pairs = _pairs(paddings, paddings_contiguous)
    if mode == "constant":
        value = 0 if constant_values is None else constant_values.item()
        return torch.constant_pad_nd(x, list(chain.from_iterable(reversed(pairs))), value)
    _check_mode(mode)
    for dimension, (before, after) in enumerate(pairs):
        if before or after:
            x = x.index_select(dimension, _places(x.shape[dimension], before, after, mode))
    return x.clone()


@kernel("PadV3Grad")
def pad_v3_grad(x: Tensor, paddings: Tensor, *, mode: str = "reflect", paddings_contiguous: bool = True) -> Tensor:
    """GE PadV3Grad: gradient of PadV3: each element of x, the gradient, is added to the element that it was filled from; with
    mode "constant" what is padding counts for nothing."""
    if mode == "constant":
        pairs = [(-before, -after) for before, after in _pairs(paddings, paddings_contiguous)]
        return torch.constant_pad_nd(x, list(chain.from_iterable(reversed(pairs))))
    _check_mode(mode)
    for dimension, (before, after) in enumerate(_pairs(paddings, paddings_contiguous)):
        if before or after:
            size = x.shape[dimension] - before - after
            shape = (*x.shape[:dimension], size, *x.shape[dimension + 1 :])
            x = x.new_zeros(shape).index_add(dimension, _places(size, before, after, mode), x)
    return x.clone()


@kernel("MirrorPad")
def mirror_pad(x: Tensor, paddings: Tensor, *, mode: str) -> Tensor:
    """GE MirrorPad: x with its mirror image around it, mode "REFLECT" without the border repeated, "SYMMETRIC" with it."""
    return pad_v3(x, paddings, mode=mode.lower())


@kernel("Pad")
def pad(x: Tensor, paddings: Tensor) -> Tensor:
    """GE Pad: x with zeros around it."""
    return pad_v3(x, paddings)
