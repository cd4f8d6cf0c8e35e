"""A transformer block with a Mixture-of-Experts layer in graph mode, checked against eager PyTorch.

On an NPU:  python examples/moe_block.py
Anywhere:   python -m moe_graph run examples/moe_block.py
"""

import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401  brings the device "npu"
import torchair
from torch import nn

import moe_graph


class Attention(nn.Module):
    """Causal self-attention. x [B, S, H] -> [B, S, H]"""

    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x):
        batch, length, hidden = x.shape
        shape = (batch, length, self.heads, hidden // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-1, -2) * (hidden // self.heads) ** -0.5  # [B, heads, S, S]
        position = torch.arange(length, device=x.device)
        scores = scores.masked_fill(position > position[:, None], float("-inf"))
        mixed = torch.softmax(scores.float(), dim=-1).to(x.dtype) @ v  # [B, heads, S, H / heads]
        return self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))


class MoE(nn.Module):
    """Top-k experts. Each of the N sequences plays a source rank: its token copies come sorted by expert, as AlltoAll delivers them.

    x [N, S, H] -> [N, S, H]; A = N * S * top_k token copies. An expert computes at most `capacity` times its fair share of A.
    """

    def __init__(self, hidden, inner, experts, top_k, capacity=2):
        super().__init__()
        self.experts, self.top_k, self.capacity = experts, top_k, capacity
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, hidden, inner) * hidden**-0.5)
        self.down = nn.Parameter(torch.randn(experts, inner, hidden) * inner**-0.5)

    def forward(self, x):
        ranks, length, hidden = x.shape
        copies = length * self.top_k  # of one rank
        weights, chosen = torch.softmax(self.gate(x).float(), dim=-1).topk(self.top_k)  # [N, S, k]
        weights = weights / weights.sum(-1, keepdim=True)

        # Each rank sorts its copies by expert and counts them.
        keys = chosen.reshape(ranks, copies) * copies + torch.arange(
            copies, device=x.device
        )  # distinct: a stable order
        keys = keys.sort(dim=-1).values
        chosen, order = keys // copies, keys % copies
        counts = (chosen[..., None] == torch.arange(self.experts, device=x.device)).sum(1, dtype=torch.int32)  # [N, E]
        first = torch.arange(ranks, device=x.device)[:, None] * length
        rows = (order // self.top_k + first).reshape(-1)  # [A], of x
        tokens = x.reshape(-1, hidden).index_select(0, rows)  # [A, H], in source-rank order

        routed = moe_graph.moe_re_routing(tokens, counts)  # [A, H], in expert order
        computed = self.compute(routed.permute_tokens, routed.expert_token_num)
        back = moe_graph.moe_un_routing(computed, counts).tokens  # [A, H], in source-rank order

        place = (order.argsort(dim=-1) + torch.arange(ranks, device=x.device)[:, None] * copies).reshape(-1)
        back = back.index_select(0, place).reshape(ranks, length, self.top_k, hidden)
        return (back.float() * weights[..., None]).sum(2).to(x.dtype)

    def compute(self, tokens, expert_token_num):
        """Each expert on its rows. tokens [A, H] in expert order, expert_token_num [E] -> [A, H]"""
        total, hidden = tokens.shape
        size = self.capacity * total // self.experts  # rows computed for an expert
        ends = expert_token_num.cumsum(0)
        starts = ends - expert_token_num
        slots = starts[:, None] + torch.arange(size, device=tokens.device)  # [E, size]: rows of tokens
        padded = tokens.index_select(0, slots.clamp(max=total - 1).reshape(-1)).reshape(self.experts, size, hidden)
        computed = torch.bmm(F.silu(torch.bmm(padded, self.up)), self.down)  # [E, size, H]

        row = torch.arange(total, device=tokens.device)
        expert = torch.searchsorted(ends, row.to(ends.dtype), right=True)  # [A]
        position = row - starts.index_select(0, expert)
        gathered = computed.reshape(-1, hidden).index_select(0, expert * size + position.clamp(max=size - 1))
        return gathered.masked_fill((position >= size)[:, None], 0)  # beyond the capacity: dropped


class RmsNorm(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.weight


class Block(nn.Module):
    """x [N, S, H] -> [N, S, H]"""

    def __init__(self, hidden=1024, heads=16, inner=2048, experts=8, top_k=2):
        super().__init__()
        self.attention, self.moe = Attention(hidden, heads), MoE(hidden, inner, experts, top_k)
        self.before, self.between = RmsNorm(hidden), RmsNorm(hidden)

    def forward(self, x):
        x = x + self.attention(self.before(x))
        return x + self.moe(self.between(x))


def main():
    torch.manual_seed(0)
    block = Block(hidden=256, heads=4, inner=512).to(torch.bfloat16).requires_grad_(False)
    inputs = [torch.randn(4, length, 256).bfloat16() for length in (64, 96, 33)]
    expected = [block(x) for x in inputs]
    block = block.npu()
    for dynamic in (False, True):
        torch._dynamo.reset()
        backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
        compiled = torch.compile(block, backend=backend, dynamic=dynamic, fullgraph=True)
        for x, reference in zip(inputs[: 3 if dynamic else 1], expected):
            output = compiled(x.npu()).cpu()
            torch.testing.assert_close(output, reference, rtol=3e-2, atol=3e-2)
            largest = (output.float() - reference.float()).abs().max().item()
            print(
                f"{'dynamic' if dynamic else 'static'} {tuple(x.shape)}: equals eager, largest difference {largest:.4f}"
            )


if __name__ == "__main__":
    main()
