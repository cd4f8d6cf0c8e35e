"""Calls of the norms, of what is fused with them, and of their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.normalization.mhc_sinkhorn import mhc_sinkhorn
from moe_graph.verification.calls.inputs import Call, Inputs


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """mean and 1 / deviation of each row, [..., 1] float32."""
    mean = x.float().mean(-1, keepdim=True)
    return mean, torch.rsqrt(x.float().var(-1, unbiased=False, keepdim=True) + 1e-5)


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    x, y, dy = r.floats(8, 128), r.floats(8, 128), r.floats(8, 128)
    gamma, beta = r.floats(128), r.floats(128)
    brain, brain_gamma = x.bfloat16(), gamma.bfloat16()
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    mean, deviation = _statistics(x + y)
    deep_mean, deep_deviation = _statistics(0.3 * x.float() + y.float())
    channels, weight, bias = r.floats(2, 32, 8), r.floats(32), r.floats(32)
    groups = _statistics(channels.view(2, 4, 64))
    by_group = [t.view(2, 4).half() for t in groups]
    scale, offset = r.scales(128).half(), torch.zeros(128, dtype=torch.int8)
    sums = x.float().view(2, 4, 128)
    matrices, steps = r.floats(100, 4, 4, dtype=torch.float32), {"num_iters": 3, "out_flag": 1}

    streams, layer = r.floats(6, 4, 128, dtype=torch.bfloat16), r.floats(6, 128, dtype=torch.bfloat16)
    between = r.floats(6, 4, 4, dtype=torch.float32).softmax(-1)
    post = r.floats(6, 4, dtype=torch.float32).sigmoid()
    before = (streams, *(r.floats(*size, dtype=torch.float32) / 16 for size in ((24, 512), (3,), (24,))))
    inv_rms = torch.rsqrt(streams.float().square().mean((-2, -1)) + 1e-6)
    mix = streams.float().flatten(1) @ before[1].t()
    of_pre = (mix[:, :4] * inv_rms[:, None] * before[2][0] + before[3][:4]).sigmoid() + 1e-6
    of_post = 2 * (mix[:, 4:8] * inv_rms[:, None] * before[2][1] + before[3][4:8]).sigmoid()
    return {
        "npu_rms_norm": [Call((x, gamma)), Call((x.float(), gamma.float(), 1e-5))],
        "npu_rms_norm_backward": [Call((dy, x, gamma, rstd))],
        "_npu_rms_norm_backward_quant": [Call((dy, x, rstd, gamma, torch.full((1,), 0.1)))],
        "npu_add_rms_norm": [Call((x, y, gamma)), Call((brain, y.bfloat16(), brain_gamma))],
        "npu_add_rms_norm_v2": [Call((x, y, gamma))],
        "npu_add_rms_norm_v2_functional": [Call((x, y, gamma))],
        "npu_add_rms_norm_cast": [Call((x, y, gamma))],
        "npu_add_rms_norm_quant": [Call((x, y, gamma, scale.float(), offset.to(torch.int32)))],
        "npu_add_rms_norm_dynamic_quant": [Call((x, y, gamma), {"output_mask": [True, False]}, undefined=(1, 4))],
        "npu_add_rms_norm_dynamic_mx_quant": [Call((brain, y.bfloat16(), brain_gamma), product="950")],
        "npu_rms_norm_quant": [Call((x, gamma, beta, scale[:1], offset[:1]))],
        "npu_rms_norm_quant_v2": [Call((x, gamma, scale), {"offset": offset})],
        "npu_rms_norm_dynamic_mx_quant": [Call((brain, brain_gamma), product="950")],
        "npu_gemma_rms_norm": [Call((x, gamma))],
        "npu_add_layer_norm": [Call((x, y, gamma, beta, 1e-5, True))],
        "npu_add_layer_norm_backward": [Call((dy, x, y, deviation, mean, gamma, None))],
        "npu_deep_norm": [Call((x, y, beta, gamma))],
        "npu_deep_norm_backward": [Call((dy, x, y, gamma, deep_mean, deep_deviation))],
        "npu_group_norm_silu": [Call((channels, weight, bias, 4, 1e-5))],
        "npu_group_norm_swish": [Call((channels, 4, weight, bias))],
        "npu_group_norm_swish_grad": [Call((r.floats(2, 32, 8), channels, 4, weight, bias, *by_group, [True] * 3))],
        "npu_layer_norm_eval": [Call((x, [128], gamma, beta))],
        "batch_norm_gather_stats_update": [
            Call(
                (r.floats(8, 128, 1, 1, dtype=torch.float32), sums.sum(1), sums.square().sum(1))
                + (torch.zeros(128), torch.ones(128), 0.1, 1e-5, torch.full((2,), 4.0))
            )
        ],
        "npu_mhc_pre": [Call(before, {"out_flag": 1})],
        "npu_mhc_pre_backward": [
            Call(
                (*before[:3], layer, r.floats(6, 4, dtype=torch.float32), r.floats(6, 4, 4, dtype=torch.float32))
                + (inv_rms, mix, of_pre, of_post)
            )
        ],
        "npu_mhc_post": [Call((streams, between, layer, post))],
        "npu_mhc_post_backward": [Call((r.floats(6, 4, 128, dtype=torch.bfloat16), streams, between, layer, post))],
        "batch_norm_reduce": [Call((r.floats(2, 32, 8, 4), 1e-5))],
        "npu_mhc_sinkhorn": [Call((matrices,), options, product="950") for options in ({}, steps)],
        "npu_mhc_sinkhorn_backward": [
            Call((r.floats(100, 4, 4, dtype=torch.float32), *mhc_sinkhorn(matrices, **steps)[1:]), product="950")
        ],
    }
