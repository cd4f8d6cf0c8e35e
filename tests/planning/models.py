"""Small models, and edits of their graphs, whose memory is predicted and counted. None of it imports the planner."""

from __future__ import annotations

import torch
import torch_npu
from torch import nn

import moe_graph


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 256, bias=False), nn.Linear(256, 64)

    def forward(self, x):
        return x + self.down(nn.functional.silu(self.up(x)))


class Residual(nn.Module):
    """Norms whose second result nobody reads, a branch, parts of one tensor."""

    def __init__(self):
        super().__init__()
        self.gamma, self.one = nn.Parameter(torch.ones(64)), Mlp()

    def forward(self, x):
        normed, _ = torch_npu.npu_rms_norm(x, self.gamma)
        left, right = torch.cat([normed, x], -1).chunk(2, -1)
        return self.one(left) * right.sum(0), left.softmax(-1)


class Cache(nn.Module):
    """Writes into a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(32, 64))

    def forward(self, x):
        self.cache[: len(x)] = x * 2
        return self.cache.sum(1), self.cache[:4] + 1


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(64, 192, bias=False)

    def forward(self, x):
        query, key, value = (part.view(-1, 4, 16).transpose(0, 1) for part in self.qkv(x).chunk(3, -1))
        scores = (query @ key.transpose(1, 2) / 4).softmax(-1)
        return (scores @ value).transpose(0, 1).reshape(-1, 64)


class Experts(nn.Module):
    """The expert side of an expert-parallel layer: re-routing, grouped products and the way back."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 64, 64)), nn.Parameter(torch.randn(3, 32, 64))

    def forward(self, x, counts):
        routed, _, index, group_list = torch_npu.npu_moe_re_routing(x, counts)
        how = dict(group_list=group_list, group_list_type=1, group_type=0, split_item=2)
        inner = torch_npu.npu_swiglu(torch_npu.npu_grouped_matmul([routed], [self.up], **how)[0])
        y = torch_npu.npu_grouped_matmul([inner], [self.down], **how)[0]
        return y.index_select(0, index.float().argsort().int())


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        return self.linear(self.convolution(x.view(-1, 3, 4, 4)).relu().mean((2, 3)))


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(500, 64), nn.Linear(64, 500, bias=False)

    def forward(self, tokens):
        return self.head(self.table(tokens)).argmax(-1)


class InPlace(nn.Module):
    def forward(self, x):
        y = x.clone()
        y.mul_(2).add_(x)
        z = torch.zeros_like(x)
        z[:, ::2] = y[:, ::2]
        return z, y[0].expand(7, -1)


class Loop(nn.Module):
    """A result that lives long."""

    def forward(self, x):
        kept = [x]
        for step in range(4):
            kept.append((kept[-1] * step).exp().float())
        return torch.stack(kept[1:]).max(0).values, kept[2].to(torch.bfloat16)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 16))

    def forward(self, x):
        scores, experts = (x.float() @ self.weight.float()).sigmoid().topk(4, -1)
        load = torch.zeros(16, device=x.device).index_add(0, experts.view(-1), scores.view(-1))
        return scores / scores.sum(-1, keepdim=True), experts.int(), load


def inputs() -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    """Name -> the model and the arguments of its call, on the CPU."""
    x = torch.randn(24, 64).bfloat16()
    counts = torch.tensor([[5, 0, 7], [4, 8, 0]])
    cases = {
        "mlp": (Mlp(), (x,)),
        "residual": (Residual(), (x,)),
        "cache": (Cache(), (x,)),
        "attention": (Attention(), (x,)),
        "experts": (Experts(), (x, counts)),
        "convolution": (Convolution(), (torch.randn(6, 48).bfloat16(),)),
        "embedding": (Embedding(), (torch.arange(24) % 500,)),
        "in place": (InPlace(), (x,)),
        "loop": (Loop(), (x,)),
        "gate": (Gate(), (x,)),
    }
    return {name: (model.bfloat16(), arguments) for name, (model, arguments) in cases.items()}


def longer_lives(module: torch.fx.GraphModule) -> None:
    """An edit: everything that floats and is computed is kept to the end, where it is added up."""
    graph = module.graph
    end = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(end):
        kept = [n for n in graph.nodes if n.op == "call_function" and _floats(n.meta.get("val"))]
        total = None
        for node in kept:
            one = graph.call_function(torch.ops.aten.sum.default, (node,))
            total = one if total is None else graph.call_function(torch.ops.aten.add.Tensor, (total, one))
        if total is not None:
            end.args = ((*end.args[0], total),)
    module.recompile()


def copies(module: torch.fx.GraphModule) -> None:
    """An edit: a copy before each product."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and "mm" in str(node.target):
            with graph.inserting_before(node):
                node.args = (graph.call_function(torch.ops.aten.clone.default, (node.args[0],)), *node.args[1:])
    module.recompile()


def _floats(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


EDITS = {"": None, "longer lives": longer_lives, "copies": copies}
__all__ = ["EDITS", "inputs", "moe_graph"]
