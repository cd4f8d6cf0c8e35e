"""Calls of losses and their gradients."""

from __future__ import annotations

import torch

from moe_graph.operators.loss import vocab_parallel_cross_entropy as shared
from moe_graph.verification.calls.inputs import Call, Inputs


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    logits, target = r.floats(8, 128), r.numbers(128, 8, dtype=torch.int64)
    log_prob = logits.float().log_softmax(-1).half()
    x, weight, word = r.floats(16, 64), r.floats(128, 64), r.numbers(256, 16)
    of_rank = (x, weight, word, 0, 128)
    largest, total, predicted, mask, row, kept = shared.online_max_sum(*of_rank, True)
    joined = (largest, total, predicted)
    grad = r.floats(16, dtype=torch.float32)
    back = (grad, x, weight, mask, row)
    return {
        "npu_cross_entropy_loss": [Call((logits, target)), Call((logits, target), {"reduction": "none"})],
        "npu_cross_entropy_loss_backward": [Call((r.floats(1), log_prob, target))],
        "npu_fused_linear_online_max_sum": [Call(of_rank), Call((*of_rank, True))],
        "npu_fused_cross_entropy_loss_with_max_sum": [Call(joined), Call(joined, {"vocab_parallel_logits": kept})],
        "npu_fused_linear_cross_entropy_loss_with_max_sum_backward": [
            Call(back, {"logits_max": largest, "sum_exp_logits": total}),
            Call(back, {"softmax": shared.loss_with_max_sum(*joined, vocab_parallel_logits=kept)[1]}),
        ],
    }
