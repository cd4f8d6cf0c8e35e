"""Calls of attention at inference: whole and paged caches, sparse, linear and native sparse attention, MLA's prolog."""

from __future__ import annotations

import torch

from moe_graph.verification.calls.inputs import Call, Inputs, angles

BRAIN = torch.bfloat16


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    return {**_dense(r), **_sparse(r), **_linear(r), **_native_sparse(r), **_latent(r)}


def _dense(r: Inputs) -> dict[str, list[Call]]:
    query, key, value = r.floats(2, 4, 16, 64), r.floats(2, 2, 16, 64), r.floats(2, 2, 16, 64)
    one, keys, values = query[:, :, :1].clone(), r.floats(4, 16, 128), r.floats(4, 16, 128)
    heads = {"num_key_value_heads": 2, "input_layout": "BNSD"}
    triangle = torch.ones(16, 16, dtype=torch.bool).triu(1)
    table = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    paged = {"block_table": table, "num_key_value_heads": 2, "block_size": 16, "input_layout": "BSH"}
    masked = {"atten_mask": triangle, "scale": 0.125, "num_heads": 4, **heads}
    masked_v2 = {"atten_mask": triangle, "softmax_scale": 0.125, "num_query_heads": 4, **heads}
    flat = one.transpose(1, 2).reshape(2, 1, 256)
    out = [torch.zeros_like(query), torch.zeros(1)]

    parts = [r.floats(16, 64, dtype=torch.float32) for _ in range(3)]
    sums = [r.floats(16, dtype=torch.float32) for _ in range(3)]
    ring = (r.floats(8, 2, 128, dtype=torch.float32), *(r.scales(2, 2, 8, 1).expand(2, 2, 8, 8) * 50 for _ in range(2)))
    scores = r.floats(2, 1, 2, 32, 32)
    return {
        "npu_fused_infer_attention_score": [
            Call((query, key, value), masked),
            Call((flat, keys, values), {**paged, "actual_seq_lengths_kv": [18, 5], "num_heads": 4, "scale": 0.125}),
        ],
        "npu_fused_infer_attention_score.out": [Call((query, key, value), {**masked, "out": out}, undefined=(1, 7))],
        "npu_fused_infer_attention_score_v2": [
            Call((query, key, value), masked_v2),
            Call(
                (flat, keys, values),
                {**paged, "actual_seq_kvlen": [18, 5], "num_query_heads": 4, "softmax_scale": 0.125},
            ),
        ],
        "npu_fused_infer_attention_score_v2.out": [
            Call((query, key, value), {**masked_v2, "out": out}, undefined=(1, 7))
        ],
        "npu_prompt_flash_attention": [
            Call((query, key, value), {"atten_mask": triangle, "scale_value": 0.125, "num_heads": 4, **heads})
        ],
        "npu_incre_flash_attention": [Call((one, key, value), {"scale_value": 0.125, "num_heads": 4, **heads})],
        "npu_attention_update": [Call((sums, parts, 1))],
        "npu_ring_attention_update": [Call((*ring, *(t.clone() for t in ring)))],
        "npu_scaled_masked_softmax": [Call((r.floats(2, 32, 64), r.numbers(2, 32, 64).bool(), 0.5))],
        "npu_scaled_masked_softmax_backward": [
            Call((r.floats(2, 32, 64), r.floats(2, 32, 64).softmax(-1), r.numbers(2, 32, 64).bool(), 0.5, False))
        ],
        "npu_attn_softmax_": [Call((r.floats(4, 16, 32),))],
        "npu_attn_softmax_backward_": [Call((r.floats(16, 32).softmax(-1), r.floats(16, 64), r.floats(32, 64)))],
        "npu_masked_softmax_with_rel_pos_bias": [Call((scores, None, r.floats(1, 1, 2, 32, 32)))],
    }


def _sparse(r: Inputs) -> dict[str, list[Call]]:
    table = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    lengths = {"actual_seq_lengths_query": torch.tensor([2, 3], dtype=torch.int32), "block_table": table}
    paged = {**lengths, "actual_seq_lengths_key": torch.tensor([18, 5], dtype=torch.int32)}
    layouts = {"layout_query": "TND", "layout_key": "PA_BSND", "sparse_count": 16}
    query, keys = r.floats(3, 8, 128, dtype=BRAIN), r.floats(4, 16, 1, 128, dtype=BRAIN)
    chosen = torch.arange(4, dtype=torch.int32).expand(3, 1, 4).contiguous()
    latent, rope = r.floats(4, 16, 1, 512, dtype=BRAIN), r.floats(4, 16, 1, 64, dtype=BRAIN)
    kv = {**lengths, "actual_seq_lengths_kv": torch.tensor([18, 5], dtype=torch.int32)}
    joined = torch.cat((r.int8(64, 512), rope.view(64, 64).view(torch.int8), r.scales(64, 4).view(torch.int8)), 1).view(
        4, 16, 1, 656
    )
    queries, index_keys, of_heads = r.floats(1, 16, 8, 128), r.floats(1, 64, 1, 128), r.floats(1, 16, 8)
    first_keys = torch.arange(32).expand(1, 16, 1, 32).int().contiguous()
    attention = (r.floats(1, 16, 32, 128), r.floats(1, 64, 1, 128), queries, index_keys, of_heads)
    largest = r.floats(1, 1, 16, 32, dtype=torch.float32).abs() * 8 + 40
    of_rows = r.floats(1, 1, 16, dtype=torch.float32).abs() + 40
    return {
        "npu_lightning_indexer_grad": [
            Call((queries, index_keys, r.floats(1, 16, 1, 32), first_keys, of_heads, None, None, "BSND"))
        ],
        "npu_dense_lightning_indexer_softmax_lse": [Call((queries, index_keys, of_heads))],
        "npu_dense_lightning_indexer_grad_kl_loss": [
            Call((*attention, largest, largest, of_rows, of_rows, 0.1)),
        ],
        "npu_sparse_lightning_indexer_grad_kl_loss": [
            Call((*attention, first_keys, largest, largest, 0.1)),
        ],
        "npu_lightning_indexer": [Call((query, keys, r.floats(3, 8, dtype=BRAIN)), {**paged, **layouts})],
        "npu_quant_lightning_indexer": [
            Call(
                (r.int8(3, 8, 128), r.int8(4, 16, 1, 128), r.scales(3, 8).half(), r.scales(3, 8).half())
                + (r.scales(4, 16, 1).half(), 0, 0),
                {**paged, **layouts},
            )
        ],
        "npu_sparse_flash_attention": [
            Call(
                (r.floats(3, 8, 512, dtype=BRAIN), latent, latent, chosen, 0.05),
                {
                    **kv,
                    "query_rope": r.floats(3, 8, 64, dtype=BRAIN),
                    "key_rope": rope,
                    "layout_query": "TND",
                    "layout_kv": "PA_BSND",
                    "attention_mode": 2,
                },
            )
        ],
        "npu_kv_quant_sparse_flash_attention": [
            Call(
                (r.floats(3, 8, 576, dtype=BRAIN), joined, joined, chosen, 0.05, 2, 2),
                {**kv, "layout_query": "TND", "layout_kv": "PA_BSND", "attention_mode": 2},
            )
        ],
    }


def _linear(r: Inputs) -> dict[str, list[Call]]:
    query, key = (torch.nn.functional.normalize(r.floats(3, 2, 128, dtype=BRAIN), dim=-1) for _ in range(2))
    value, state = r.floats(3, 4, 128, dtype=BRAIN), r.floats(5, 4, 128, 128, dtype=BRAIN)
    gates = {
        "beta": r.floats(3, 4, dtype=BRAIN).sigmoid(),
        "scale": 0.1,
        "actual_seq_lengths": torch.tensor([1, 2], dtype=torch.int32),
        "g": -r.scales(3, 4) * 20,
    }
    states = {
        "ssm_state_indices": torch.tensor([4, 0, 2], dtype=torch.int32),
        "num_accepted_tokens": torch.tensor([1, 2], dtype=torch.int32),
    }
    return {
        "npu_recurrent_gated_delta_rule": [Call((query, key, value, state), {**gates, **states})],
        "npu_recurrent_gated_delta_rule_functional": [Call((query, key, value, state), {**gates, **states})],
        "npu_chunk_gated_delta_rule": [Call((query, key, value), {**gates, "initial_state": state[:2].clone()})],
    }


def _native_sparse(r: Inputs) -> dict[str, list[Call]]:
    query, key, value = r.floats(64, 4, 192), r.floats(64, 2, 192), r.floats(64, 2, 128)
    rows, weight = r.floats(128, 2, 192), r.floats(32, 2)
    ends = {"actual_seq_qlen": [64], "actual_seq_kvlen": [64]}
    selected = torch.zeros(64, 2, 1, dtype=torch.int32)
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float().repeat_interleave(2, 1)) * 0.07
    maximum, soft = scores.amax(-1), scores.softmax(-1)
    total = (scores - maximum[..., None]).exp().sum(-1)
    out = torch.einsum("hqk,khd->qhd", soft, value.float().repeat_interleave(2, 1)).half()
    statistics = [t.t().unsqueeze(-1).expand(64, 4, 8).contiguous() for t in (maximum, total)]
    table = torch.tensor([[2, 0]], dtype=torch.int32)
    keys, values = r.floats(4, 64, 384), r.floats(4, 64, 256)
    one = r.floats(1, 4, 192)
    return {
        "npu_nsa_compress": [Call((rows, weight, 32, 16), {"actual_seq_len": [80, 128]})],
        "npu_nsa_compress_grad": [Call((r.floats(6, 2, 192), rows, weight, 32, 16), {"actual_seq_len": [80, 128]})],
        "npu_nsa_compress_infer.cache": [
            Call(
                (r.floats(4, 64, 2, 192), weight, torch.tensor([1], dtype=torch.int32), 32, 16, 64),
                {"block_table": table, "actual_seq_len": [48], "cache": torch.zeros(4, 2, 192, dtype=torch.float16)},
            )
        ],
        "npu_nsa_compress_attention": [
            Call(
                (query, key[:3].clone(), value[:3].clone(), 0.07, 4, 32, 16, 64, 1),
                {"actual_seq_qlen": [64], "actual_cmp_seq_kvlen": [3], "actual_sel_seq_kvlen": [1]},
            )
        ],
        "npu_nsa_compress_attention_infer": [
            Call(
                (one, keys, values, 0.07, 4, 2, 64, 3, 64, 32, 16),
                {"block_table": table, "actual_cmp_seq_kvlen": [70]},
            )
        ],
        "npu_nsa_select_attention": [Call((query, key, value, selected, 0.07, 4, 64, 1), ends)],
        "npu_nsa_select_attention_grad": [
            Call((r.floats(64, 4, 128), query, key, value, out, *statistics, selected, 0.07, 4, 64, 1), ends)
        ],
        "npu_nsa_select_attention_infer": [
            Call(
                (one, keys, values, selected[:1].clone(), 0.07, 4, 2, 64, 1, 64),
                {"layout": "TND", "block_table": table, "actual_seq_kvlen": [70]},
            )
        ],
    }


def _latent(r: Inputs) -> dict[str, list[Call]]:
    """Sizes are the smallest of v3's document; of the others it is 7168 that is asked for as hidden."""
    hidden, rank, latent, heads, depth, rope = 1024, 1536, 512, 1, 128, 64
    tokens = r.floats(2, hidden, dtype=BRAIN)

    def weight(rows: int, columns: int) -> torch.Tensor:
        return r.floats(rows, columns, dtype=BRAIN) / rows**0.5

    cos, sin = (t[:2].to(BRAIN) for t in angles(2, rope))
    given = (tokens, weight(hidden, rank), weight(rank, heads * (depth + rope)))
    given += (r.floats(heads, depth, latent, dtype=BRAIN) / 12, weight(hidden, latent + rope))
    given += (r.floats(rank, dtype=BRAIN), r.floats(latent, dtype=BRAIN), sin, cos)
    slots = torch.tensor([13, 40])
    caches = r.floats(4, 16, 1, latent, dtype=BRAIN), r.floats(4, 16, 1, rope, dtype=BRAIN)
    return {
        "npu_mla_prolog": [Call((*given, slots, *caches))],
        "npu_mla_prolog_v2": [Call((*given, slots, *caches), undefined=(4,))],
        "npu_mla_prolog_v3": [Call((*given, *caches), {"cache_index": slots}, undefined=(2, 4))],
        "npu_mla_prolog_v3_functional": [Call((*given, *caches), {"cache_index": slots}, undefined=(2, 4))],
    }
