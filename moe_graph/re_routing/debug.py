"""Debug the kernel against the fallback: force the fallback on any device, or run both and report the first difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_graph.foundation import contract
from moe_graph.foundation.contract import MoeReRoutingOutput
from moe_graph.re_routing import fallback


class force_fallback(TorchDispatchMode):  # noqa: N801  used like a function: `with force_fallback():`
    """Inside the block the operator runs as the eager fallback on tensors of every device, an NPU's kernel included.

    For eager debugging, in this thread, with or without autograd and inference mode. A function compiled by torch.compile
    runs what it was compiled to.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is contract.operator():
            func = fallback.re_routing
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Difference:
    """The first element in which an output of the kernel differs from the fallback's.

    Attributes:
        output: name of the output
        position: index of the element, or None if shape or dtype differ
        kernel: the kernel's value there (or shape and dtype)
        fallback: the fallback's
        count: how many elements of this output differ
    """

    output: str
    position: tuple[int, ...] | None
    kernel: Any
    fallback: Any
    count: int

    def __str__(self) -> str:
        where = "" if self.position is None else f"{list(self.position)}"
        return f"{self.output}{where}: kernel {self.kernel}, fallback {self.fallback} ({self.count} elements differ)"


def first_difference(kernel: MoeReRoutingOutput, expected: MoeReRoutingOutput) -> Difference | None:
    """The first difference between two sets of outputs, bit by bit, in the order of the outputs; None if there is none."""
    for name, a, b in zip(MoeReRoutingOutput._fields, kernel, expected):
        if a.shape != b.shape or a.dtype != b.dtype:
            ours, theirs = (f"{x.dtype} {tuple(x.shape)}" for x in (a, b))
            return Difference(name, None, ours, theirs, max(a.numel(), b.numel()))
        a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
        if not a.numel():
            continue
        # Rows of bytes: moved data must agree to the bit, NaNs included, whatever the dtype.
        differs = (
            (a.view(-1).view(torch.uint8) != b.view(-1).view(torch.uint8)).view(a.numel(), a.element_size()).any(1)
        )
        if differs.any():
            flat = int(differs.nonzero()[0])
            position = tuple(int(i) for i in numpy.unravel_index(flat, tuple(a.shape)))
            return Difference(name, position, _value(a, flat), _value(b, flat), int(differs.sum()))
    return None


def _value(x: Tensor, flat: int) -> Any:
    element = x.view(-1)[flat]
    return (
        element.to(torch.float32).item()
        if element.is_floating_point() and element.element_size() < 2
        else element.item()
    )


def compare_with_fallback(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    *,
    implementation: Callable[..., tuple] | None = None,
    **arguments: Any,
) -> Difference | None:
    """Run the kernel in force for these tensors' device and the eager fallback on the same input, and compare bit by bit.

    The second output is left out when no scales are given: the kernel leaves it undefined.

    Args:
        tokens: as in `moe_graph.moe_re_routing`.
        expert_token_num_per_rank: as there.
        implementation: any callable with the operator's signature, for instance a compiled function (default: the operator).
        arguments: keyword arguments of `moe_graph.moe_re_routing`.

    Returns:
        The first difference, or None if every output agrees.
    """
    run = contract.operator() if implementation is None else implementation
    with torch.no_grad():
        got = MoeReRoutingOutput(*run(tokens, expert_token_num_per_rank, **arguments))
        expected = MoeReRoutingOutput(*fallback.re_routing(tokens, expert_token_num_per_rank, **arguments))
    if arguments.get("per_token_scales") is None:
        got = got._replace(permute_per_token_scales=expected.permute_per_token_scales)
    return first_difference(got, expected)
