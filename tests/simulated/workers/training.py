"""One rank of two: a small transformer trained under DDP, FSDP and fully_shard, against one process on the CPU.

Arguments: the file of the rendezvous, the folder for the results, the way of training. Every rank computes the reference itself.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401
from torch import nn
from torch.nn import functional as F

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
STEPS, BATCH, LENGTH, WORDS, WIDTH = 50, 8, 6, 11, 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        # No bias on the keys: its gradient is 0, and Adam makes steps of the rounding error.
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.before(x)).chunk(3, -1)
        weights = (q @ k.transpose(1, 2) / WIDTH**0.5).softmax(-1)
        x = x + self.out(weights @ v)
        return x + self.down(F.gelu(self.up(self.after(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words):
        x = self.embedding(words)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss_of(model, words):
    logits = model(words[:, :-1])
    return F.cross_entropy(logits.reshape(-1, WORDS), words[:, 1:].reshape(-1))


def distributed(way, model):
    if way == "ddp":
        return nn.parallel.DistributedDataParallel(model, device_ids=[RANK], bucket_cap_mb=0.01)
    if way == "ddp_hook":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        wrapped = nn.parallel.DistributedDataParallel(model, device_ids=[RANK])
        wrapped.register_comm_hook(None, allreduce_hook)
        return wrapped
    if way == "fsdp":
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        return FullyShardedDataParallel(
            model, auto_wrap_policy=ModuleWrapPolicy({Block}), device_id=torch.device("npu", RANK), use_orig_params=True
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("npu", (SIZE,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def full_parameters(way, model):
    """name -> the whole parameter, on the CPU."""
    if way == "fsdp":
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(model):
            return {
                name.replace("_fsdp_wrapped_module.", ""): value.detach().cpu().clone()
                for name, value in model.named_parameters()
            }
    whole = {}
    for name, value in model.named_parameters():
        value = value.detach()
        whole[name.removeprefix("module.")] = (
            (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu().clone()
        )
    return whole


def main():
    way = sys.argv[3]
    torch.npu.set_device(RANK)
    dist.init_process_group("hccl", init_method=f"file://{sys.argv[1]}", rank=RANK, world_size=SIZE)
    torch.manual_seed(0)
    reference = Transformer()
    model = Transformer()
    model.load_state_dict(reference.state_dict())
    model = distributed(way, model.npu())
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (reference, model)]
    generator = torch.Generator().manual_seed(1)
    losses = []
    gradient_error = 0.0
    for _ in range(STEPS):
        words = torch.randint(WORDS, (BATCH, LENGTH), generator=generator)
        share = words.chunk(SIZE)[RANK]
        for optimizer in optimizers:
            optimizer.zero_grad()
        expected = loss_of(reference, words)
        expected.backward()
        loss = loss_of(model, share.npu())
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)
        losses.append((expected.item(), mean.item()))
        if way.startswith("ddp"):
            for one, other in zip(reference.parameters(), model.parameters()):
                gradient_error = max(gradient_error, (one.grad - other.grad.cpu()).abs().max().item())
        for optimizer in optimizers:
            optimizer.step()
    whole = full_parameters(way, model)
    parameter_error = max((whole[name] - value).abs().max().item() for name, value in reference.state_dict().items())
    results = {
        "losses": losses,
        "gradient_error": gradient_error,
        "parameter_error": parameter_error,
        "names": len(whole),
    }
    Path(sys.argv[2], f"{RANK}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
