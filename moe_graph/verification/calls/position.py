"""Calls of the rotary embeddings."""

from __future__ import annotations

import torch

from moe_graph.verification.calls.inputs import Call, Inputs, angles


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    cos, sin = angles(8, 64)
    heads = r.floats(2, 8, 4, 64)
    by_head = [t.view(1, 8, 1, 64).expand(2, 8, 1, 64).contiguous() for t in (cos, sin)]
    wide_cos, wide_sin = angles(8, 128)
    both = wide_cos.view(1, 8, 1, 128), wide_sin.view(1, 8, 1, 128)
    table = torch.cat((cos[:, :32], sin[:, :32]), 1)
    positions = r.numbers(8, 3, 8, dtype=torch.int64)
    return {
        "npu_rotary_mul": [Call((heads, *by_head)), Call((heads, *by_head, "interleave"))],
        "npu_rotary_mul_backward": [Call((r.floats(2, 8, 4, 64), heads, *by_head))],
        "npu_interleave_rope": [Call((heads.transpose(1, 2).contiguous(), *(t.transpose(1, 2) for t in by_head)))],
        "npu_apply_rotary_pos_emb": [Call((r.floats(1, 8, 4, 128), r.floats(1, 8, 2, 128), *both))],
        "npu_mrope": [
            Call((positions[0], r.floats(8, 256), r.floats(8, 128), table, 64)),
            Call((positions, r.floats(8, 256), r.floats(8, 128), table, 64), {"mrope_section": [16, 8, 8]}),
        ],
    }
