"""Do the device's kernels of the operators around re-routing do what their references do? A walk over everything that is declared.

Whole numbers and booleans agree to the bit, int8 to one step (a quotient on the edge between two); floating point results within a few
roundings of their type, as kernels add up in another order.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from moe_graph import operators
from moe_graph.foundation import product
from moe_graph.foundation.transforms import tensors
from moe_graph.operators.declaration import Operator, is_defined
from moe_graph.verification.calls import NOT_CALLED, Call, calls
from moe_graph.verification.run import Status

TOLERANCE = {torch.float16: 2.0**-8, torch.bfloat16: 2.0**-6, torch.float32: 2.0**-10, torch.float64: 2.0**-20}
"""Of a value and of the largest of its tensor: results near 0 are differences of large ones. Of float8 one step of the type."""
for _name, _step in (("float8_e4m3fn", 2.0**-3), ("float8_e5m2", 2.0**-2)):
    if hasattr(torch, _name):
        TOLERANCE[getattr(torch, _name)] = _step


@dataclass(frozen=True)
class Finding:
    """What one declared operator's kernel did with one call; NOT_SERVED: there is no call for it here, or no kernel on this product."""

    operator: str
    call: int
    status: Status
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Did it differ or raise?"""
        return self.status in (Status.DIFFERS, Status.RAISED)


def walk(pattern: str = "*", report: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
    """Every declared operator whose name matches, on the current NPU against its reference; each finding is reported as it comes."""
    findings, known = [], calls()
    for qualified, operator in sorted(operators.every().items()):
        if not fnmatch.fnmatch(operator.name, pattern):
            continue
        for finding in _of(qualified, operator, known.get(operator.name)):
            findings.append(finding)
            report(finding)
    return findings


def _of(qualified: str, operator: Operator, known: list[Call] | None) -> Iterator[Finding]:
    if known is None:
        yield Finding(qualified, 0, Status.NOT_SERVED, NOT_CALLED.get(operator.name, "no call is known"))
        return
    if not is_defined(operator):
        yield Finding(qualified, 0, Status.NOT_SERVED, "this torch_npu does not have it")
        return
    current = product.current_product().name
    for number, call in enumerate(known):
        if call.product in ("", current):
            yield _run(qualified, operator, number, call)
        else:
            yield Finding(qualified, number, Status.NOT_SERVED, f"only {call.product} has it")


def _run(qualified: str, operator: Operator, number: int, call: Call) -> Finding:
    """The call and its reference, on copies: their results, and the tensor arguments as they leave them."""
    args, kwargs = copy.deepcopy((call.args, call.kwargs))
    expected = list(tensors(_as_tuple(operator.reference(*args, **kwargs)), args, tuple(kwargs.values())))
    try:
        args = tuple(_moved(arg, "cpu" if place in call.on_host else "npu") for place, arg in enumerate(call.args))
        kwargs = {name: _moved(arg, "cpu" if name in call.on_host else "npu") for name, arg in call.kwargs.items()}
        args, kwargs = copy.deepcopy((args, kwargs))
        with torch.no_grad():
            results = operator.overload(*args, **kwargs)
            found = list(tensors(_moved((_as_tuple(results), args, tuple(kwargs.values())), "cpu")))
    except Exception as error:  # whatever a device makes of a call is the finding, and the next call is still made
        return Finding(qualified, number, Status.RAISED, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    if len(found) != len(expected):
        return Finding(qualified, number, Status.DIFFERS, f"{len(found)} tensors, the reference has {len(expected)}")
    for place, (result, wanted) in enumerate(zip(found, expected)):
        difference = None if place in call.undefined else _difference(result, wanted)
        if difference is not None:
            return Finding(qualified, number, Status.DIFFERS, f"tensor {place}: {difference}")
    return Finding(qualified, number, Status.AGREES)


def _as_tuple(results: Any) -> Any:
    """Numbers and booleans among the results as tensors."""
    return tree_map(lambda value: torch.tensor(value) if isinstance(value, (bool, int, float)) else value, results)


def _difference(found: Tensor, wanted: Tensor) -> str | None:
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return f"{found.dtype} {tuple(found.shape)}, the reference has {wanted.dtype} {tuple(wanted.shape)}"
    if not wanted.numel():
        return None
    if not wanted.is_floating_point():
        allowed = torch.tensor(1 if wanted.dtype in (torch.int8, torch.uint8) else 0)
        distance = (found.long() - wanted.long()).abs()
    else:
        tolerance, found, wanted = TOLERANCE[wanted.dtype], found.double(), wanted.double()
        both = found.isnan() & wanted.isnan() | (found == wanted)  # infinities
        distance = (found - wanted).abs().masked_fill(both, 0)
        size = wanted.abs().masked_fill(~wanted.isfinite(), 0)
        allowed = tolerance * (size + size.max() * 2.0**-4)
    wrong = ~(distance <= allowed)
    if not bool(wrong.any()):
        return None
    place = tuple(int(i) for i in wrong.nonzero()[0])
    return f"{int(wrong.sum())} of {wrong.numel()} elements, the first at {list(place)}: kernel {found[place]}, reference {wanted[place]}"


def _moved(values: Any, device: str) -> Any:
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)
