"""Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.registry import kernel
from moe_graph.operators import fourier


@kernel("FFT")
def fft(x: Tensor) -> Tensor:
    """GE FFT: the discrete Fourier transform along the last dimension."""
    return fourier.of_nothing_too(torch.fft.fft)(x)


@kernel("FFT2D")
def fft2d(x: Tensor) -> Tensor:
    """GE FFT2D: the discrete Fourier transform along the last two dimensions."""
    return fourier.of_nothing_too(torch.fft.fft2)(x)
