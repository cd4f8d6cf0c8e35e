"""A call or two of each declared operator that `verify` compares with its reference: small, of sizes that the kernels' documents allow.

A module a room of `moe_graph.operators`. An operator that is declared and has no call is in `NOT_CALLED`, with the reason.
"""

from __future__ import annotations

from moe_graph.verification.calls import (
    activation,
    atb,
    attention,
    cache,
    fusion_attention,
    matmul,
    moe,
    normalization,
    position,
    quantization,
    sampling,
    tensor,
)
from moe_graph.verification.calls.inputs import Call, Inputs
from moe_graph.verification.calls.not_called import NOT_CALLED

__all__ = ["NOT_CALLED", "Call", "calls"]

_ROOMS = (
    activation,
    atb,
    attention,
    cache,
    fusion_attention,
    matmul,
    moe,
    normalization,
    position,
    quantization,
    sampling,
    tensor,
)


def calls() -> dict[str, list[Call]]:
    """Operator's name -> its calls, made anew each time. Some share tensors: give a kernel copies, it may change them."""
    return {name: made for room in _ROOMS for name, made in room.calls(Inputs()).items()}
