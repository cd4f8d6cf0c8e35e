"""Calls of the attention of training and of its gradients."""

from __future__ import annotations

import torch

from moe_graph.operators.attention.fusion_attention_v3 import fusion_attention_v3
from moe_graph.verification.calls.inputs import Call, Inputs

_SIZES = (2, "BNSD")


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    query, key, value, dy = (r.floats(1, 2, 32, 64) for _ in range(4))
    mask = torch.ones(32, 32, dtype=torch.bool).triu(1)
    packed = [r.floats(32, 2, 64) for _ in range(3)]
    masked = {"atten_mask": mask, "scale": 0.125}
    ends = [12, 32]

    scores = (query.float() @ key.float().transpose(2, 3) * 0.125).masked_fill(mask, -torch.inf)
    maximum = scores.amax(-1, keepdim=True)
    total = (scores - maximum).exp().sum(-1, keepdim=True)
    out = ((scores - maximum).exp() / total @ value.float()).half()
    back = {
        "atten_mask": mask,
        "scale_value": 0.125,
        "softmax_max": maximum.expand(-1, -1, -1, 8).contiguous(),
        "softmax_sum": total.expand(-1, -1, -1, 8).contiguous(),
        "softmax_in": query.new_empty(0),
        "attention_in": out,
    }
    given = (query, key, value, dy, *_SIZES)
    seeds = {"seed": torch.zeros(1, dtype=torch.int64), "offset": torch.zeros(1, dtype=torch.int64)}
    lengths = {name: torch.tensor(ends) for name in ("actual_seq_qlen", "actual_seq_kvlen")}
    forward = fusion_attention_v3(*packed, 2, "TND", scale=0.125, **lengths)
    states = {"softmax_max": forward[1], "softmax_sum": forward[2], "attention_in": forward[0]}
    of_packed = {
        "npu_fusion_attention_v3.out": Call(
            (*packed, 2, "TND"),
            {"scale": 0.125, **lengths, "out": [torch.zeros_like(made) for made in forward]},
            undefined=(3, 4, 5, 14, 15, 16),  # softmax_out, seed and offset
            on_host=tuple(lengths),
        ),
        "npu_fusion_attention_grad_v3.out": Call(
            (*packed, r.floats(32, 2, 64), 2, "TND"),
            {
                "scale_value": 0.125,
                **states,
                **lengths,
                "out": [*map(torch.zeros_like, packed), query.new_empty(0), torch.empty(0)],
            },
            on_host=tuple(lengths),
        ),
    }
    return {
        "npu_fusion_attention": [
            Call((query, key, value, *_SIZES), masked),
            Call((*packed, 2, "TND"), {"scale": 0.125, "actual_seq_qlen": ends, "actual_seq_kvlen": ends}),
        ],
        "npu_fusion_attention_v2": [Call((query, key, value, *_SIZES), masked)],
        "npu_fusion_attention_v3": [Call((query, key, value, *_SIZES), masked)],
        "npu_fusion_attention_grad": [Call(given, back)],
        "npu_fusion_attention_grad_v2": [Call(given, back)],
        "npu_fusion_attention_grad_v3": [Call(given, {**back, **seeds})],
        **{name: [call] for name, call in of_packed.items()},
    }
