"""Calls of the choice of the next token."""

from __future__ import annotations

import torch

from moe_graph.verification.calls.inputs import Call, Inputs


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    logits = r.floats(4, 256, dtype=torch.float32)
    return {
        "npu_top_k_top_p": [Call((logits, torch.full((4,), 0.9), torch.full((4,), 40, dtype=torch.int32)))],
    }
