"""An expert-parallel prefill function in the manner of public Ascend models: `torch_npu.` calls, `.npu()`, hccl, no word of moe_graph.

Dynamically quantized tokens, int8 experts, the way back by an argsort of the index. Each rank prints how far it is from float32 numbers.
"""

import os

import torch
import torch.distributed as dist
import torch_npu

RANK, SIZE = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
HIDDEN, INNER, EXPERTS, TOP_K = 32, 16, 4 * SIZE, 3


def prefill(hidden_states, topk_weights, topk_ids, w1, w1_scale, w2, w2_scale, group):
    expanded_x, expanded_row_idx, tokens_per_expert, pertoken_scale = torch_npu.npu_moe_init_routing_v2(
        hidden_states,
        topk_ids,
        active_num=topk_ids.numel(),
        expert_num=EXPERTS,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        active_expert_range=[0, EXPERTS],
        quant_mode=1,
    )
    tokens_per_expert_group = tokens_per_expert.new_empty(tokens_per_expert.shape[0])
    dist.all_to_all_single(tokens_per_expert_group, tokens_per_expert, group=group)
    combine_tokens = torch.stack([tokens_per_expert_group, tokens_per_expert], dim=0)
    combine_tokens = combine_tokens.view(2, SIZE, -1).sum(2)
    all_tokens = combine_tokens[0].sum()
    combine_tokens_cpu = combine_tokens.cpu().tolist()
    input_splits, output_splits = combine_tokens_cpu[1], combine_tokens_cpu[0]
    gathered_tokens = expanded_x.new_empty(all_tokens.item(), expanded_x.shape[1])
    dist.all_to_all_single(gathered_tokens, expanded_x, output_splits, input_splits, group=group)
    gathered_pertoken_scale = pertoken_scale.new_empty(gathered_tokens.shape[0])
    dist.all_to_all_single(gathered_pertoken_scale, pertoken_scale, output_splits, input_splits, group=group)

    hidden_states_ordered, pertoken_scale_ordered, gathered_ids_unsort, tokens_per_local_expert = (
        torch_npu.npu_moe_re_routing(
            gathered_tokens, tokens_per_expert_group.view(SIZE, -1), per_token_scales=gathered_pertoken_scale
        )
    )
    group_list = tokens_per_local_expert.to(torch.int64)
    mm1 = torch_npu.npu_grouped_matmul(
        [hidden_states_ordered],
        [w1],
        group_list=group_list,
        split_item=3,
        output_dtype=torch.int32,
        group_type=0,
        group_list_type=1,
        tuning_config=[0],
    )[0]
    intermediate, intermediate_scale = torch_npu.npu_dequant_swiglu_quant(
        mm1,
        weight_scale=w1_scale,
        activation_scale=pertoken_scale_ordered,
        group_index=group_list,
        activate_left=True,
        quant_mode=1,
    )
    hidden_states_ordered = torch_npu.npu_grouped_matmul(
        [intermediate],
        [w2],
        scale=[w2_scale],
        per_token_scale=[intermediate_scale],
        bias=None,
        group_list=group_list,
        split_item=3,
        output_dtype=torch.bfloat16,
        group_type=0,
        group_list_type=1,
    )[0]
    new_x = torch.index_select(hidden_states_ordered, 0, gathered_ids_unsort.float().argsort().int())
    gathered = new_x.new_empty(*expanded_x.shape)
    dist.all_to_all_single(gathered, new_x, input_splits, output_splits, group=group)
    return torch_npu.npu_moe_finalize_routing(
        gathered,
        skip1=None,
        skip2=None,
        bias=None,
        scales=topk_weights.to(gathered.dtype),
        expanded_src_to_dst_row=expanded_row_idx,
        export_for_source_row=None,
        drop_pad_mode=2,
    )


def main():
    torch.npu.set_device(RANK)
    dist.init_process_group("hccl")
    generator = torch.Generator().manual_seed(0)
    w1 = torch.randint(-127, 128, (EXPERTS, HIDDEN, 2 * INNER), generator=generator, dtype=torch.int8)
    w2 = torch.randint(-127, 128, (EXPERTS, INNER, HIDDEN), generator=generator, dtype=torch.int8)
    w1_scale = (torch.rand(EXPERTS, 2 * INNER, generator=generator) + 0.5) / 600
    w2_scale = ((torch.rand(EXPERTS, HIDDEN, generator=generator) + 0.5) / 600).to(torch.bfloat16)
    generator.manual_seed(RANK + 1)
    x = torch.randn(11 + 7 * RANK, HIDDEN, generator=generator).to(torch.bfloat16)
    weights, ids = torch.randn(len(x), EXPERTS, generator=generator).softmax(-1).topk(TOP_K)

    local = slice(RANK * EXPERTS // SIZE, (RANK + 1) * EXPERTS // SIZE)
    arguments = (x, weights, ids.int(), w1[local], w1_scale[local], w2[local], w2_scale[local])
    with torch.no_grad():
        y = prefill(*(argument.npu() for argument in arguments), dist.group.WORLD)

    up = torch.einsum("sh,ehi->sei", x.float(), w1 * w1_scale[:, None])
    left, right = up.chunk(2, dim=-1)
    expert_y = torch.einsum("sei,eih->seh", torch.nn.functional.silu(left) * right, w2 * w2_scale.float()[:, None])
    expected = (expert_y.gather(1, ids[..., None].expand(-1, -1, HIDDEN)) * weights[..., None]).sum(1)
    difference = (y.cpu().float() - expected).abs().max() / expected.abs().max()
    # One write, so that the lines of the ranks stay whole.
    print(f"rank {RANK}: {tuple(y.shape)} on {y.device}, differs by {difference:.1e}\n", end="", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
