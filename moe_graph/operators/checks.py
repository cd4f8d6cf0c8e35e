"""Checks of an operator's arguments. Each error is a ValueError that names operator and argument, what came and what is allowed."""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

import torch
from torch import Tensor

from moe_graph.operators import dtypes


class Checks:
    """The checks, for one operator. Shapes may be symbolic; a symbolic condition becomes a guard or a run-time assertion."""

    def __init__(self, operator: str) -> None:
        self._operator = operator

    def refuse(self, argument: str, allowed: str, got: object) -> NoReturn:
        """Raise the error."""
        raise ValueError(self.message(argument, allowed, got))

    def message(self, argument: str, allowed: str, got: object) -> str:
        """The error's text."""
        return f"{self._operator}: {argument} must be {allowed}, got {got}"

    def value(self, argument: str, value: object, allowed: Collection) -> None:
        """One of the allowed values. A bool is no number: an attribute given as True is a slip, not a mode."""
        is_slip = isinstance(value, bool) and not any(isinstance(item, bool) for item in allowed)
        if is_slip or value not in allowed:
            text = f"from {allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) and allowed else None
            self.refuse(argument, text or f"one of {', '.join(map(repr, allowed))}", repr(value))

    def absent(self, argument: str, value: object, why: str = "which is not supported") -> None:
        """An argument of the schema that must be left out."""
        if value is not None:
            self.refuse(
                argument, f"None ({why})", f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            )

    def own_dtype(self, argument: str, number: int | None, tensor: Tensor | None) -> None:
        """The type as which a tensor is read: its own, said or not. Others have no fallback."""
        if number is not None and (tensor is None or dtypes.from_number(number) != tensor.dtype):
            own = "" if tensor is None else f" or the tensor's own, {tensor.dtype}"
            self.refuse(argument, f"None{own} (other types have no fallback)", dtypes.name(number))

    def dtype(self, argument: str, tensor: Tensor, allowed: Collection[torch.dtype]) -> None:
        """One of the allowed dtypes."""
        if tensor.dtype not in allowed:
            self.refuse(argument, f"of dtype {' or '.join(map(str, allowed))}", tensor.dtype)

    def rank(self, argument: str, tensor: Tensor, ranks: Collection[int], shape: str) -> None:
        """One of the allowed ranks; `shape` says them in the operator's symbols, "[A, H]"."""
        if tensor.dim() not in ranks:
            self.refuse(argument, f"of shape {shape}", f"shape {tuple(tensor.shape)}")

    def size(self, condition: bool | torch.SymBool, argument: str, allowed: str, tensor: Tensor) -> None:
        """A condition on sizes, which may be symbolic."""
        if condition is not True:
            message = f"{self._operator}: {argument} must be {allowed}, got shape {tuple(tensor.shape)}"
            torch._check_value(condition, lambda: message)

    def device(self, argument: str, tensor: Tensor, other_argument: str, other: Tensor) -> None:
        """On the device of another argument."""
        if tensor.device != other.device:
            self.refuse(argument, f"on the device of {other_argument}, {other.device}", tensor.device)
