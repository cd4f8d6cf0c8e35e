"""A call or two of each declared operator that `verify` compares with its reference: small, of sizes that the kernels' documents allow.

A module a room of `moe_graph.operators`. An operator that is declared and has no call is in `NOT_CALLED`, with the reason.
"""

from __future__ import annotations

import importlib
import pkgutil

from moe_graph.verification.calls.inputs import Call, Inputs
from moe_graph.verification.calls.not_called import NOT_CALLED

__all__ = ["NOT_CALLED", "Call", "calls"]

_NO_ROOMS = ("inputs", "not_called")


def calls() -> dict[str, list[Call]]:
    """Operator's name -> its calls, made anew each time. Some share tensors: give a kernel copies, it may change them."""
    names = (module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NO_ROOMS)
    rooms = (importlib.import_module(f"{__name__}.{name}") for name in names)
    return {name: made for room in rooms for name, made in room.calls(Inputs()).items()}
