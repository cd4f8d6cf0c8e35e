"""npu_moe_re_routing in eager mode, at the sizes of the operator's document.

On an NPU:  python examples/eager.py
Anywhere:   python -m moe_graph run examples/eager.py
"""

import torch
import torch_npu

import moe_graph

TOKENS, HIDDEN, RANKS, EXPERTS = 16384, 7168, 16, 16


def main():
    torch.manual_seed(0)
    tokens = torch.randint(-10, 20, (TOKENS, HIDDEN), dtype=torch.int8)
    chunk = torch.randint(0, RANKS * EXPERTS, (TOKENS,))
    expert_token_num_per_rank = torch.bincount(chunk, minlength=RANKS * EXPERTS).view(RANKS, EXPERTS).to(torch.int32)
    per_token_scales = torch.randn(TOKENS)

    outputs = torch_npu.npu_moe_re_routing(
        tokens.npu(),
        expert_token_num_per_rank.npu(),
        per_token_scales=per_token_scales.npu(),
        expert_token_num_type=1,
        idx_type=0,
    )
    print(f"npu_moe_re_routing on {outputs[0].device}: {', '.join(f'{tuple(x.shape)} {x.dtype}' for x in outputs)}")

    # The same call on CPU tensors runs moe_graph's eager fallback.
    expected = moe_graph.moe_re_routing(tokens, expert_token_num_per_rank, per_token_scales=per_token_scales)
    for name, output, reference in zip(expected._fields, outputs, expected):
        if not torch.equal(output.cpu(), reference):
            raise SystemExit(f"{name} differs from the eager fallback")
        print(f"  {name} equals the eager fallback")


if __name__ == "__main__":
    main()
