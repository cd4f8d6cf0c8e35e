"""The operator on DTensors: what is replicated stays so; tokens sharded along H are re-routed where they are.

Each rank moves its own columns of every row, with the counts of all, so nothing is sent. Other placements, tokens sharded along A for
one, are replicated first, as DTensor does it. Scales must be replicated.
"""

from __future__ import annotations

import sys
from typing import Any

from moe_graph.foundation import contract

MODULE = "torch.distributed.tensor"


def declare() -> None:
    """Tell DTensor, if it is imported; its experimental.register_sharding came with torch 2.6."""
    if MODULE not in sys.modules:
        return
    from torch.distributed.tensor import experimental

    if hasattr(experimental, "register_sharding"):
        experimental.register_sharding(contract.operator())(_placements)


def forget() -> None:
    """Take it back."""
    if MODULE not in sys.modules:
        return
    from torch.distributed.tensor import DTensor

    propagator = DTensor._op_dispatcher.sharding_propagator
    propagator.op_strategy_funcs.pop(contract.operator(), None)
    propagator.op_to_schema_info.pop(contract.operator(), None)


def _placements(tokens: Any, counts: Any, *, per_token_scales: Any = None, **_: Any) -> list[tuple[list, list]]:
    """(placements of the outputs, of the inputs) along one dimension of the mesh, each that is possible."""
    from torch.distributed.tensor import Replicate, Shard

    given, whole = per_token_scales is not None, Replicate()
    if given and any(placement != whole for placement in per_token_scales.placements):
        # DTensor moves positional arguments only to where they are wanted.
        raise ValueError(
            f"{contract.NAME}: per_token_scales must be replicated if it is a DTensor, got {per_token_scales.placements}"
        )
    rest: list[Any] = [whole] * 3
    return [([of_tokens, *rest], [of_tokens, *rest[: 2 if given else 1]]) for of_tokens in (whole, Shard(1))]
