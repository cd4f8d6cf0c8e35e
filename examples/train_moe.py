"""A small Mixture-of-Experts decoder is trained with torch_npu's fused operators, its experts spread over the ranks, as on the CPU.

On the simulated device:  python -m moe_graph run --devices 2 examples/train_moe.py --ranks 2
On NPUs:                  python examples/train_moe.py --ranks 2

npu_fusion_attention, npu_moe_token_permute and npu_grouped_matmul with their gradients, AlltoAlls between them, NpuFusedAdamW. Each rank
has sequences of its own; the CPU computes those of all ranks with plain PyTorch, every expert on every token. All in float32.

Symbols: B sequences, S their length, T = B * S tokens, H hidden, k experts of a token, E experts of a rank, R ranks, A rows received.
"""

import argparse
import tempfile

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torch_npu
from rich.console import Console
from rich.table import Table
from torch import nn

npu = torch.ops.npu
WORDS, HIDDEN, HEADS, INNER, EXPERTS, TOP_K, LAYERS, BATCH, LENGTH = 32, 64, 4, 48, 8, 2, 2, 4, 12
TOLERANCE = 1e-4  # of a loss, relative


class AllToAll(torch.autograd.Function):
    """sent[r] rows of x to rank r, received[r] from it. Its gradient takes the way back."""

    @staticmethod
    def forward(ctx, x, sent, received):
        ctx.sizes = sent, received
        out = x.new_empty((sum(received), *x.shape[1:]))
        dist.all_to_all_single(out, x.contiguous(), received, sent)
        return out

    @staticmethod
    def backward(ctx, grad):
        sent, received = ctx.sizes
        return AllToAll.apply(grad, received, sent), None, None


class Attention(nn.Module):
    """Causal. x [B, S, H] -> [B, S, H]"""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scale = (HIDDEN // HEADS) ** -0.5
        if x.device.type == "npu":
            hidden = torch.ones(2048, 2048, dtype=torch.bool, device=x.device).triu(1)
            given = dict(atten_mask=hidden, sparse_mode=2, scale=scale)
            return self.out(npu.npu_fusion_attention(q, k, v, HEADS, "BSH", **given)[0])
        q, k, v = (value.unflatten(-1, (HEADS, -1)).transpose(1, 2) for value in (q, k, v))  # [B, heads, S, D]
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class MoE(nn.Module):
    """x [T, H] -> [T, H]. On the CPU it has all experts, on a device those of the rank."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, 2 * INNER) * HIDDEN**-0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN) * INNER**-0.5)

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(TOP_K)  # [T, k]
        if x.device.type == "npu":
            return self.spread(x, weights, chosen)
        left, right = torch.einsum("th,ehi->tei", x, self.up).chunk(2, dim=-1)
        y = torch.einsum("tei,eih->teh", F.silu(left) * right, self.down)
        return (y.gather(1, chosen[..., None].expand(-1, -1, HIDDEN)) * weights[..., None]).sum(1)

    def spread(self, x, weights, chosen):
        copies, order = npu.npu_moe_token_permute(x, chosen.int())  # [T * k, H], sorted by expert, so by rank
        ranks = EXPERTS // len(self.up)
        counts = torch.bincount(chosen.flatten(), minlength=EXPERTS)
        if ranks == 1:
            y = self.experts(copies, counts)
        else:
            received = torch.empty_like(counts)
            dist.all_to_all_single(received, counts)
            sent, arrived = torch.stack([counts, received]).view(2, ranks, -1).sum(-1).tolist()
            expert = torch.arange(len(self.up), device=x.device).repeat(ranks).repeat_interleave(received)  # [A]
            rows, back = npu.npu_moe_token_permute(AllToAll.apply(copies, sent, arrived), expert.int())
            y = self.experts(rows, received.view(ranks, -1).sum(0))
            y = AllToAll.apply(npu.npu_moe_token_unpermute(y, back), arrived, sent)
        return npu.npu_moe_token_unpermute(y, order, weights)

    def experts(self, rows, counts):
        """rows [A, H] in the order of the experts, counts [E] -> [A, H]"""
        how = dict(group_list=counts, group_list_type=1, group_type=0, split_item=2)
        (inner,) = npu.npu_grouped_matmul([rows], [self.up], **how)
        return npu.npu_grouped_matmul([npu.npu_swiglu(inner)], [self.down], **how)[0]


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x):
        if x.device.type == "npu":
            return npu.npu_rms_norm(x, self.weight, 1e-6)[0]
        return F.rms_norm(x, (HIDDEN,), self.weight, 1e-6)


class Decoder(nn.Module):
    """ids [B, S] -> logits [B, S, words]"""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, HIDDEN), nn.Linear(HIDDEN, WORDS, bias=False)
        self.attention, self.moe = (
            nn.ModuleList(Attention() for _ in range(LAYERS)),
            nn.ModuleList(MoE() for _ in range(LAYERS)),
        )
        self.norms = nn.ModuleList(RmsNorm() for _ in range(2 * LAYERS))

    def forward(self, ids):
        x, norms = self.embedding(ids), iter(self.norms)
        for attention, moe in zip(self.attention, self.moe):
            x = x + attention(next(norms)(x))
            x = x + moe(next(norms)(x).flatten(0, 1)).view_as(x)
        return self.head(x)


def loss_of(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def keep_experts(model, rank, ranks):
    """Leaves the model the experts of a rank, and returns their parameters."""
    mine = slice(rank * EXPERTS // ranks, (rank + 1) * EXPERTS // ranks)
    for moe in model.moe:
        moe.up, moe.down = nn.Parameter(moe.up.data[mine].clone()), nn.Parameter(moe.down.data[mine].clone())
    return {parameter for moe in model.moe for parameter in (moe.up, moe.down)}


def train(rank, ranks, steps):
    """[(loss of all ranks on the devices, loss on the CPU) of each step]"""
    torch.manual_seed(0)
    reference, model = Decoder(), Decoder()
    model.load_state_dict(reference.state_dict())
    experts = keep_experts(model, rank, ranks)
    model.npu()
    given = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
    on_cpu = torch.optim.AdamW(reference.parameters(), **given)
    optimizer = torch_npu.optim.NpuFusedAdamW(model.parameters(), **given)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        start = torch.randint(WORDS, (ranks * BATCH, 1), generator=generator)
        ids = (start + torch.arange(LENGTH + 1) * (1 + start % 3)) % WORDS  # sequences that can be learned
        expected = loss_of(reference, ids)
        on_cpu.zero_grad()
        expected.backward()
        on_cpu.step()

        loss = loss_of(model, ids[rank * BATCH : (rank + 1) * BATCH].npu())
        optimizer.zero_grad()
        loss.backward()
        total = loss.detach() / ranks
        if ranks > 1:
            dist.all_reduce(total)
            for parameter in model.parameters():  # an expert's gradient is the sum of all ranks' tokens already
                if parameter not in experts:
                    dist.all_reduce(parameter.grad)
                parameter.grad /= ranks
        optimizer.step()
        losses.append((total.item(), expected.item()))
    return losses


def work(rank, arguments, rendezvous):
    torch.npu.set_device(rank)
    if arguments.ranks > 1:
        dist.init_process_group("hccl", init_method=rendezvous, rank=rank, world_size=arguments.ranks)
    losses = train(rank, arguments.ranks, arguments.steps)
    if rank == 0:
        table = Table("step", "loss", "on the CPU", title=f"{arguments.ranks} ranks")
        for number, (found, expected) in enumerate(losses, 1):
            table.add_row(str(number), f"{found:.6f}", f"{expected:.6f}")
        Console().print(table)
    if any(abs(found - expected) > TOLERANCE * expected for found, expected in losses):
        raise SystemExit(f"the losses differ from the CPU's by more than {TOLERANCE:.0e}")
    if arguments.ranks > 1:
        dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=1, help="processes, a device each")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given = (arguments, f"file://{folder}/rendezvous")
        work(0, *given) if arguments.ranks == 1 else torch.multiprocessing.spawn(work, given, nprocs=arguments.ranks)


if __name__ == "__main__":
    main()
