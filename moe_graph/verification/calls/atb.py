"""Calls of ATB's operators: lengths of sequences lie on the host."""

from __future__ import annotations

import torch

from moe_graph.verification.calls.inputs import Call, Inputs, angles

HEADS, KEY_HEADS, WIDTH, BLOCK, SCALE = 4, 2, 128, 16, 0.1
LENGTHS, CONTEXT = [3, 5], [18, 6]


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    return {**_heads(r), **_latent(r), **_others(r)}


def _heads(r: Inputs) -> dict[str, list[Call]]:
    query, key, value = (r.floats(8, heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
    out = torch.zeros_like(query)
    lengths, context = (torch.tensor(numbers, dtype=torch.int32) for numbers in (LENGTHS, CONTEXT))
    triangle = torch.ones(128, 128, dtype=torch.float16).triu(1)
    sizes = {"scale_value": SCALE, "num_heads": HEADS, "num_kv_heads": KEY_HEADS}
    slopes = -r.scales(HEADS)
    distance = torch.arange(256)[:, None] - torch.arange(256)
    alibi = (distance.tril() + torch.full((256, 256), 60000.0).triu(1)).half()

    keys, values = (r.floats(4, BLOCK, KEY_HEADS, WIDTH) for _ in range(2))
    table = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    one, one_out = query[:2].clone(), out[:2].clone()
    paged = (one, keys, values, KEY_HEADS, HEADS, SCALE, table, context)
    rows = torch.zeros(8, max(CONTEXT), dtype=torch.float16)
    for row, visible in enumerate([16, 17, 18, 2, 3, 4, 5, 6]):
        rows[row, visible:] = -9999

    latent, latent_out = r.floats(2, HEADS, 576), torch.zeros(2, HEADS, 512, dtype=torch.float16)
    quantised = r.int8(2, HEADS, WIDTH), r.int8(4, BLOCK, KEY_HEADS, WIDTH), r.int8(4, BLOCK, KEY_HEADS, WIDTH)
    cos, sin = angles(10, 64)
    slots = torch.tensor([13, 0, 40], dtype=torch.int32)
    new, cached = r.floats(3, KEY_HEADS, WIDTH), r.floats(4, BLOCK, KEY_HEADS, WIDTH)
    pages = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32), torch.tensor([18, 5], dtype=torch.int32)
    loaded = (r.floats(4, 16, 2, 64), r.floats(4, 16, 2, 64), *pages)
    return {
        "_npu_flash_attention": [
            Call(
                (*(t.reshape(8, -1) for t in (query, key, value)), triangle, lengths, SCALE, HEADS, KEY_HEADS)
                + (out.reshape(8, -1),),
                on_host=(4,),
            )
        ],
        "_npu_flash_attention_unpad": [
            Call((query, key, value, lengths, SCALE, HEADS, KEY_HEADS, out), on_host=(3,)),
        ],
        "_npu_flash_attention_unpad_v2": [
            Call((query, key, value, lengths, SCALE, HEADS, KEY_HEADS), {"out": out}, on_host=(3,))
        ],
        "_npu_flash_attention_v2.out": [
            Call((query, key, value, LENGTHS), {"mask": alibi, "slopes": slopes, "mask_type": 4, "out": out, **sizes})
        ],
        "_npu_flash_attention_v3": [
            Call((query, key, value, triangle, lengths, SCALE, HEADS, KEY_HEADS), {"out": out}, on_host=(4,))
        ],
        "_npu_flash_attention_qlens": [
            Call((query, keys, values, table, triangle, lengths, context, KEY_HEADS, HEADS, SCALE, out), on_host=(5, 6))
        ],
        "_npu_flash_attention_prefix_v2.out": [
            Call(
                (query, keys.flatten(2), values.flatten(2), table, alibi, LENGTHS, CONTEXT),
                {"slopes": slopes, "mask_type": 4, "out": out, **sizes},
            )
        ],
        "_npu_paged_attention": [Call((*paged, one_out), on_host=(7,))],
        "_npu_paged_attention_v2.out": [
            Call((one, keys, table, CONTEXT), {"value_cache": values, "out": one_out, **sizes})
        ],
        "_npu_paged_attention_mla": [
            Call((latent, r.floats(4, BLOCK, 1, 576), 1, HEADS, SCALE, table, context, 512, latent_out), on_host=(6,))
        ],
        "_npu_paged_attention_quant": [
            Call(
                (*quantised, KEY_HEADS, HEADS, SCALE, table, context, 3, 1, r.scales(HEADS), r.scales(HEADS), one_out),
                on_host=(7,),
            )
        ],
        "_npu_paged_attention_splitfuse": [
            Call((query, keys, values, table, context, rows, lengths, KEY_HEADS, HEADS, SCALE, out), on_host=(4, 6))
        ],
        "_npu_reshape_and_cache": [Call((new, r.floats(3, KEY_HEADS, WIDTH), cached, cached.clone(), slots))],
        "_npu_reshape_and_cache_siso": [Call((new, cached, slots))],
        "_npu_rotary_embedding": [
            Call(
                (
                    torch.tensor([7, 0, 3]),
                    r.floats(3, 256),
                    r.floats(3, 128),
                    64,
                    torch.cat((cos, sin), 1)[:, ::2],
                    True,
                )
            )
        ],
        "npu_paged_cache_load": [Call(loaded)],
        "npu_paged_cache_load.out": [Call(loaded, {"key": r.floats(23, 2, 64), "value": r.floats(23, 2, 64)})],
        "_npu_quantize_per_tensor": [
            Call(
                (r.floats(2, 64), r.scales(64).half(), r.int8(64), torch.zeros(2, 64, dtype=torch.int8)),
            )
        ],
    }


def _latent(r: Inputs) -> dict[str, list[Call]]:
    nope, rope = r.floats(2, HEADS, 512), r.floats(2, HEADS, 64)
    table = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    caches = r.floats(4, BLOCK, 1, 512), r.floats(4, BLOCK, 1, 64)
    single = (nope, rope, *caches, table, CONTEXT, HEADS, SCALE, 1)
    ring = {"calc_type": "calc_type_ring"}
    written = {"output": torch.zeros_like(nope)}
    sums = {"lse": torch.zeros(2, HEADS, 1, dtype=torch.float16)}

    packed = [r.floats(8, HEADS, width) for width in (128, 64)]
    packed += [r.floats(8, KEY_HEADS, width) for width in (128, 64, 128)]
    triangle = torch.ones(512, 512, dtype=torch.float16).triu(1)
    prompts = (*packed, triangle, torch.tensor([LENGTHS, LENGTHS], dtype=torch.int32), HEADS, KEY_HEADS)
    others = {"pre_out": r.floats(8, HEADS, 128), "prev_lse": r.floats(HEADS, 8, dtype=torch.float32)}
    joined = {"qk_scale": SCALE, "calc_type": "calc_type_default", **others}
    made = {"output": torch.zeros_like(others["pre_out"]), "softmax_lse": torch.zeros(HEADS, 8)}

    blocks = (r.floats(4, 128, KEY_HEADS, 128), r.floats(4, 128, KEY_HEADS, 128), table)
    query = r.floats(8, HEADS, 128)
    prefixed = (query, *blocks, LENGTHS, [LENGTHS[0] + 128, LENGTHS[1]], HEADS, SCALE, KEY_HEADS)
    return {
        "npu_multi_head_latent_attention": [Call(single)],
        "npu_multi_head_latent_attention.out": [Call(single, written)],
        "npu_multi_head_latent_attention.lse": [Call((*single, True), ring)],
        "npu_multi_head_latent_attention.lse_out": [Call((*single, True), {**ring, **written, **sums})],
        "npu_ring_mla": [
            Call(prompts, {"qk_scale": SCALE, "mask_type": "mask_type_triu"}, on_host=(6,)),
            Call(prompts, joined, on_host=(6,)),
        ],
        "npu_ring_mla.out": [Call(prompts, {**joined, **made}, on_host=(6,))],
        "npu_self_attention_prefix_encoder": [Call(prefixed)],
        "npu_self_attention_prefix_encoder.out": [Call(prefixed, {"output": torch.zeros_like(query)})],
    }


def _others(r: Inputs) -> dict[str, list[Call]]:
    gate, options = (r.floats(8, 64), r.floats(64)), {"group_num": 8, "group_topk": 4, "n": 2, "k": 6}
    chosen = {"y": torch.zeros(8, 6), "indices": torch.zeros(8, 6, dtype=torch.int32)}
    product = (r.floats(64, 32), r.floats(64, 48), r.floats(32, 48, dtype=torch.float32))
    return {
        "npu_fused_add_topk_div": [Call(gate, options)],
        "npu_fused_add_topk_div.out": [Call(gate, {**options, **chosen})],
        "_npu_group_topk": [Call((r.floats(8, 64), 4, 8, 2))],
        "_npu_matmul_add_fp32": [Call(product)],
    }
