"""What the calls that `verify` makes of an operator are built of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """Arguments of an operator, tensors on the CPU.

    Attributes:
        undefined: places of results, and of tensor arguments behind them, that the kernel leaves undefined
        on_host: places and names of the arguments that stay on the CPU: lengths that the host reads
        product: the one product that has it ("950"), "" for all
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    undefined: tuple[int, ...] = ()
    on_host: Collection[int | str] = ()
    product: str = ""


class Inputs:
    """Random tensors from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def floats(self, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        """Normal values."""
        return torch.randn(shape, generator=self._generator).to(dtype)

    def scales(self, *shape: int) -> Tensor:
        """float32 from 0.01 to 0.02."""
        return (1 + torch.rand(shape, generator=self._generator)) / 100

    def int8(self, *shape: int) -> Tensor:
        """Values from -128 to 127."""
        return torch.randint(-128, 128, shape, generator=self._generator).to(torch.int8)

    def numbers(self, below: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """Whole numbers from 0."""
        return torch.randint(below, shape, generator=self._generator).to(dtype)

    def int4(self, *shape: int) -> Tensor:
        """int32 with eight random int4 in each."""
        return torch.randint(-(2**31), 2**31, shape, generator=self._generator).to(torch.int32)

    def e8m0(self, *shape: int) -> Tensor:
        """uint8 of float8_e8m0 from 1 / 8 to 8."""
        return torch.randint(124, 131, shape, generator=self._generator, dtype=torch.uint8)


def angles(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin [rows, width] float16 of a rotary embedding, its halves alike."""
    phases = torch.arange(rows)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    both = torch.cat((phases, phases), 1)
    return both.cos().half(), both.sin().half()
