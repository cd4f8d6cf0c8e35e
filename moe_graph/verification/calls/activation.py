"""Calls of the activations."""

from __future__ import annotations

import torch

from moe_graph.verification.calls.inputs import Call, Inputs


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    x, dy, wide = r.floats(8, 128), r.floats(8, 128), r.floats(8, 256)
    half = torch.nn.functional.gelu(wide[:, :128].float(), approximate="tanh").half()
    return {
        "npu_swiglu": [Call((wide,)), Call((wide.bfloat16(), 0))],
        "npu_swiglu_backward": [Call((x, wide))],
        "npu_swiglu_group_quant_backward": [
            Call((r.floats(8, 128, dtype=torch.bfloat16), wide.bfloat16()), product="950")
        ],
        "npu_geglu": [Call((wide,)), Call((wide, -1, 0, True))],
        "npu_geglu_grad": [Call((dy, wide, half))],
        "npu_gelu": [Call((x,)), Call((x,), {"approximate": "tanh"})],
        "npu_gelu_backward": [Call((dy, x)), Call((dy, x), {"approximate": "tanh"})],
        "npu_gelu_mul": [Call((wide,))],
        "npu_fast_gelu": [Call((x,))],
        "fast_gelu": [Call((x,))],
        "npu_fast_gelu_backward": [Call((dy, x))],
        "npu_mish": [Call((x,))],
        "npu_mish_backward": [Call((dy, x))],
        "npu_silu": [Call((x,))],
        "npu_silu_": [Call((x,))],
        "npu_silu_backward": [Call((dy, x, torch.nn.functional.silu(x)))],
        "npu_clipped_swiglu": [Call((wide,)), Call((wide,), {"interleaved": False})],
    }
