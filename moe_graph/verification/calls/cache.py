"""Calls that write to caches of keys and values, and read from them."""

from __future__ import annotations

import torch

from moe_graph.verification.calls.inputs import Call, Inputs, angles

PAGES, SIZE, HEADS, WIDTH = 4, 16, 2, 128


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    x = r.floats(8, 128)
    rows = torch.tensor([[5], [0]])
    per_row = torch.tensor([5, 0], dtype=torch.int32)
    data, updates = r.floats(2, 4, 16, 32), r.floats(2, 4, 1, 32)
    listed = [r.floats(4, 16, 32), r.floats(4, 16, 32)]
    quantised = (r.int8(2, 4, 16, 32), per_row, updates, r.scales(1, 1, 1, 32).bfloat16())

    keys, values = (r.floats(PAGES, SIZE, HEADS, WIDTH) for _ in range(2))
    tokens = r.floats(3, HEADS, WIDTH), r.floats(3, HEADS, WIDTH)
    slots = torch.tensor([13, 0, 40], dtype=torch.int32)
    scattered = (*tokens, keys, values, slots)
    gathered = (
        keys,
        values,
        torch.tensor([[2, 0], [1, 3]], dtype=torch.int32),
        torch.tensor([18, 5], dtype=torch.int32),
    )
    into = r.floats(23, HEADS, WIDTH), r.floats(23, HEADS, WIDTH)

    kv, gamma = r.floats(2, 1, 1, 576), r.floats(512)
    cos, sin = (t[:2].view(2, 1, 1, 64).contiguous() for t in angles(2, 64))
    pages = r.floats(PAGES, SIZE, 1, 64), r.floats(PAGES, SIZE, 1, 512)
    latent = (kv, gamma, cos, sin, torch.tensor([3, 50]), *pages)
    paged = {"cache_mode": "PA", "is_output_kv": True}

    sizes, wide_cos, wide_sin = [3, 1, 8, WIDTH], *(t.contiguous() for t in angles(3, WIDTH))
    qkv = (
        r.floats(3, 8 * WIDTH),
        r.floats(WIDTH),
        r.floats(WIDTH),
        wide_cos,
        wide_sin,
        torch.tensor([13, 0, 40]),
        torch.zeros(3, 4 * WIDTH, dtype=torch.float16),
        *(r.floats(PAGES, 2 * WIDTH // 16, SIZE, 16) for _ in range(2)),
        sizes,
        [4, 2, 2],
    )

    half_cos, half_sin = (t[:2].view(2, 1, 1, WIDTH) for t in angles(2, WIDTH))
    caches = r.int8(2, SIZE, HEADS, WIDTH), r.int8(2, SIZE, HEADS, WIDTH)
    scales = r.scales(HEADS, WIDTH), r.scales(HEADS, WIDTH)
    turned = (half_cos, half_sin, *caches, torch.tensor([3, 9], dtype=torch.int32), *scales, [512, 256, 256])
    return {
        "npu_scatter_nd_update": [Call((x, rows, r.floats(2, 128)))],
        "npu_scatter_nd_update_": [Call((x, rows, r.floats(2, 128)))],
        "scatter_update": [Call((data, per_row, updates, -2))],
        "scatter_update_": [Call((data, per_row, updates, -2))],
        "npu_scatter_list": [Call((listed, per_row, updates))],
        "npu_scatter_list_": [Call((listed, per_row, updates))],
        "npu_quant_scatter": [Call(quantised)],
        "npu_quant_scatter_": [Call(quantised)],
        "npu_scatter_pa_kv_cache": [Call(scattered, {"cache_mode": "Norm"})],
        "npu_scatter_pa_kv_cache_functional": [Call(scattered, {"cache_mode": "Norm"})],
        "npu_gather_pa_kv_cache": [Call((*gathered, *into))],
        "npu_gather_pa_kv_cache_functional": [Call((*gathered, *into))],
        "npu_kv_rmsnorm_rope_cache": [Call(latent, paged)],
        "npu_kv_rmsnorm_rope_cache_v2": [Call(latent, paged)],
        "npu_kv_rmsnorm_rope_cache_v2_functional": [Call(latent, paged)],
        "npu_qkv_rms_norm_rope_cache": [Call(qkv, {"is_output_qkv": True})],
        "npu_qkv_rms_norm_rope_cache_functional": [Call(qkv, {"is_output_qkv": True})],
        "npu_rope_quant_kvcache": [Call((r.floats(2, 1, 1024), *turned), {"kv_output": True})],
        "npu_dequant_rope_quant_kvcache": [
            Call(
                (r.numbers(2000, 2, 1, 1024), *turned),
                {"weight_scale": r.scales(1024), "activation_scale": r.scales(2), "kv_output": True},
            )
        ],
    }
