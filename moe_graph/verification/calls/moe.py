"""Calls of the gates, of routing and of its way back."""

from __future__ import annotations

import torch

from moe_graph.verification.calls.inputs import Call, Inputs


def calls(r: Inputs) -> dict[str, list[Call]]:
    """See `moe_graph.verification.calls`."""
    x, tokens, experts = r.floats(8, 128), r.floats(16, 128), r.numbers(8, 16, 2)
    rows = torch.arange(32, dtype=torch.int32).view(2, 16).t().contiguous()
    order = experts.flatten().sort(stable=True).indices
    places = order.argsort().to(torch.int32)
    sorted_rows, probs = tokens[order // 2], r.floats(16, 2).softmax(1)

    routing_map = torch.zeros(16, 8, dtype=torch.bool)
    routing_map[torch.arange(16), experts[:, 0].long()] = True
    routing_map[torch.arange(16), (experts[:, 0].long() + 3) % 8] = True
    by_expert = routing_map.t().nonzero()[:, 1]  # the token of each row
    of_rows = by_expert.sort(stable=True).indices.to(torch.int32)
    mapped, weights = tokens[by_expert], r.floats(16, 8).sigmoid() * routing_map
    back = {"probs": weights, "routing_map": routing_map}
    quantised = {"active_num": 32, "expert_num": 8, "expert_tokens_num_mode": 1, "drop_pad_mode": 0}
    return {
        "npu_moe_gating_top_k": [
            Call((x, 4), {"k_group": 4, "group_count": 8, "group_select_mode": 1, "norm_type": 1}, undefined=(2,)),
            Call((x.float(), 8), {}, undefined=(2,)),
        ],
        "npu_moe_gating_top_k_backward": [
            Call((x.float().sigmoid(), r.floats(8, 4), r.numbers(128, 8, 4)), {"norm_type": 1})
        ],
        "npu_moe_gating_top_k_softmax": [Call((x,), {"k": 4})],
        "npu_moe_gating_top_k_softmax_v2": [Call((x,), {"k": 4}, undefined=(2,))],
        "npu_moe_init_routing": [Call((tokens, rows, experts, 16))],
        "npu_moe_init_routing_v2": [
            Call(
                (tokens, experts),
                {
                    "active_num": 32,
                    "expert_num": 8,
                    "expert_tokens_num_type": 1,
                    "expert_tokens_num_flag": True,
                    "active_expert_range": [0, 8],
                },
                undefined=(3,),
            )
        ],
        "npu_moe_init_routing_quant": [Call((tokens, experts), quantised)],
        "npu_moe_compute_expert_tokens": [Call((experts.flatten().sort().values, 8))],
        "npu_moe_token_permute": [Call((tokens, experts))],
        "npu_moe_token_unpermute": [Call((sorted_rows, places, probs))],
        "npu_moe_finalize_routing": [
            Call(
                (sorted_rows, tokens, None, None, probs, places.view(16, 2).t().flatten(), None), {"drop_pad_mode": 2}
            ),
        ],
        "npu_moe_token_permute_with_routing_map": [Call((tokens, routing_map), {"num_out_tokens": len(by_expert)})],
        "npu_moe_token_permute_with_routing_map_grad": [Call((mapped, None, of_rows, routing_map, 8, 16, False))],
        "npu_moe_token_unpermute_with_routing_map": [Call((mapped, of_rows, [16, 128]), back)],
        "_npu_moe_token_unpermute_with_routing_map": [Call((mapped, of_rows, [16, 128]), back)],
        "npu_moe_token_unpermute_with_routing_map_grad": [
            Call((tokens, of_rows, by_expert.to(torch.int32), None, None, None, False, [16, 128]))
        ],
        "npu_moe_update_expert": [
            Call(
                (experts, torch.tensor([[1, e, 0] for e in range(8)], dtype=torch.int32)),
                {"local_rank_id": 1, "world_size": 4},
            )
        ],
    }
