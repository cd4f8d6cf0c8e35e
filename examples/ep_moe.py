"""A DeepSeek-style Mixture-of-Experts layer over several ranks: the prefill path of expert parallelism, checked against a dense layer.

On plain CPU tensors, gloo:      torchrun --nproc-per-node=4 examples/ep_moe.py
On the simulated device, hccl:   python -m moe_graph run --devices 4 -m torch.distributed.run --nproc-per-node=4 examples/ep_moe.py
On NPUs, hccl:                   torchrun --nproc-per-node=4 examples/ep_moe.py

Each scenario (evenly routed, skewed, a rank without tokens, int8) runs eager and, on a device, compiled; each rank compares its output with
the dense layer's. `--picture FILE.png` draws who held which expert's tokens before and after (needs matplotlib).

`--dtype float32` (on the CPU; devices re-route 16 bits and int8) compares to the last bits.

Symbols: S tokens of this rank, k experts a token goes to, N ranks, E experts on a rank, H hidden, I inner size, A tokens received.
"""

import argparse
import os
from dataclasses import dataclass

import moe_graph  # isort: skip  first: it makes torch importable where a torch_npu wheel lies without CANN
import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn

DEVICE = "npu" if hasattr(torch, "npu") and torch.npu.is_available() else "cpu"
npu = torch.ops.npu


@dataclass(frozen=True)
class Config:
    hidden: int = 64
    inner: int = 32
    experts: int = 16  # on all ranks together
    top_k: int = 4
    groups: int = 4  # a token goes to experts of `top_groups` of these only
    top_groups: int = 2
    scaling: float = 2.5
    dtype: torch.dtype = torch.bfloat16
    int8: bool = False


class Weights(nn.Module):
    """The layer's weights, those of all experts, the same on each rank. The gate is float32, as in public models.

    `bias` steers tokens between experts, as in training.
    """

    def __init__(self, config: Config, bias: torch.Tensor):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def normal(*shape, dtype=config.dtype):
            return nn.Parameter((torch.randn(*shape, generator=generator) * shape[-2] ** -0.5).to(dtype))

        self.gate = normal(config.hidden, config.experts, dtype=torch.float32)
        self.register_buffer("bias", bias)
        self.up = normal(config.experts, config.hidden, 2 * config.inner)
        self.down = normal(config.experts, config.inner, config.hidden)
        self.shared_up = normal(config.hidden, 2 * config.inner)
        self.shared_down = normal(config.inner, config.hidden)


def quantized(weight):
    """int8 per output channel. weight [E, K, M] -> int8 [E, K, M], float32 scales [E, M]"""
    scale = weight.float().abs().amax(dim=1) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


class Gate(nn.Module):
    """Group-limited top k of sigmoid scores. x [S, H] -> weights [S, k], experts int32 [S, k]"""

    def __init__(self, weights: Weights, config: Config):
        super().__init__()
        self.weights, self.config = weights, config

    def forward(self, x):
        config = self.config
        scores, experts, _ = npu.npu_moe_gating_top_k(
            x.float() @ self.weights.gate,
            config.top_k,
            bias=self.weights.bias,
            k_group=config.top_groups,
            group_count=config.groups,
            group_select_mode=1,  # a group's score: the sum of its two best experts
            norm_type=1,  # sigmoid
            routed_scaling_factor=config.scaling,
        )
        return scores, experts


class Experts(nn.Module):
    """The experts of one rank. What arrives by the AlltoAll goes back in the order it came.

    tokens [A, H] in source-rank order, counts [N, E], scales [A] (int8 only) -> [A, H]
    """

    def __init__(self, weights: Weights, first: int, last: int):
        super().__init__()
        self.up, self.down = weights.up[first:last], weights.down[first:last]

    def forward(self, tokens, counts, scales):
        routed, _, _, group_list = npu.npu_moe_re_routing(tokens, counts)
        inner = self.matmul(routed, self.up, group_list)  # [A, 2 I]
        y = self.matmul(npu.npu_swiglu(inner), self.down, group_list)  # [A, H]
        return moe_graph.moe_un_routing(y, counts).tokens

    @staticmethod
    def matmul(x, weight, group_list):
        return npu.npu_grouped_matmul(
            [x], [weight], group_list=group_list, group_list_type=1, group_type=0, split_item=2
        )[0]


class Int8Experts(nn.Module):
    """The same with int8 tokens and weights: a scale per token, a scale per expert and output channel."""

    def __init__(self, weights: Weights, first: int, last: int):
        super().__init__()
        self.up, self.up_scale = quantized(weights.up[first:last].detach())
        self.down, self.down_scale = quantized(weights.down[first:last].detach())
        self.down_scale = self.down_scale.to(torch.bfloat16)

    def forward(self, tokens, counts, scales):
        routed, routed_scales, _, group_list = npu.npu_moe_re_routing(tokens, counts, per_token_scales=scales)
        how = dict(group_list=group_list, group_list_type=1, group_type=0, split_item=2)
        (inner,) = npu.npu_grouped_matmul([routed], [self.up], output_dtype=torch.int32, **how)  # int32 [A, 2 I]
        inner, inner_scales = npu.npu_dequant_swiglu_quant(
            inner,
            weight_scale=self.up_scale,
            activation_scale=routed_scales,
            group_index=group_list,
            activate_left=True,
            quant_mode=1,
        )  # int8 [A, I], float32 [A]
        (y,) = npu.npu_grouped_matmul(
            [inner],
            [self.down],
            scale=[self.down_scale],
            per_token_scale=[inner_scales],
            output_dtype=torch.bfloat16,
            **how,
        )
        return moe_graph.moe_un_routing(y, counts).tokens


class AllToAll(torch.autograd.Function):
    """Rows to all ranks: `sent[r]` of x to rank r, `received[r]` from it. Its gradient takes the way back."""

    @staticmethod
    def forward(ctx, x, sent, received, group):
        ctx.sizes, ctx.group = (sent, received), group
        out = x.new_empty((sum(received), *x.shape[1:]))
        dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
        return out

    @staticmethod
    def backward(ctx, grad):
        sent, received = ctx.sizes
        return AllToAll.apply(grad, received, sent, ctx.group), None, None, None


class Layer(nn.Module):
    """One rank's part of the layer. x [S, H] -> [S, H]; S differs from rank to rank and may be 0."""

    def __init__(self, weights: Weights, config: Config, group=None):
        super().__init__()
        self.config, self.group = config, group
        self.ranks = dist.get_world_size(group)
        local = config.experts // self.ranks
        first = dist.get_rank(group) * local
        self.weights, self.gate = weights, Gate(weights, config)
        self.experts = (Int8Experts if config.int8 else Experts)(weights, first, first + local)
        self.compiled = None
        self.seen = {}

    def compile(self, backend):
        """Put the experts into one graph for every A. Dynamo would make further graphs of A = 0 and A = 1: those calls stay eager."""
        self.compiled = torch.compile(self.experts, backend=backend, dynamic=True, fullgraph=True)

    def forward(self, x):
        config = self.config
        scores, chosen = self.gate(x)
        # Copies of the tokens in the order of the experts, so of the ranks: a rank's experts follow one another.
        copies, row, counts, scales = npu.npu_moe_init_routing_v2(
            x,
            chosen,
            active_num=chosen.numel(),
            expert_num=config.experts,
            expert_tokens_num_type=1,
            expert_tokens_num_flag=True,
            quant_mode=1 if config.int8 else -1,
            active_expert_range=[0, config.experts],
        )
        received_counts = torch.empty_like(counts)
        dist.all_to_all_single(received_counts, counts, group=self.group)
        received_counts = received_counts.view(self.ranks, -1)  # [N, E]
        # The sizes of the AlltoAll must be known to the host: the one place of the layer where it waits for the device.
        sent, received = torch.stack([counts.view(self.ranks, -1).sum(1), received_counts.sum(1)]).tolist()
        tokens = AllToAll.apply(copies, sent, received, self.group)
        scales = AllToAll.apply(scales, sent, received, self.group) if config.int8 else None
        experts = self.experts if self.compiled is None or len(tokens) < 2 else self.compiled
        y = experts(tokens, received_counts, scales)
        back = AllToAll.apply(y, received, sent, self.group)
        self.seen = {"sent": counts.view(self.ranks, -1), "received": received_counts}
        routed = npu.npu_moe_finalize_routing(back, None, None, None, scores.to(back.dtype), row, None, drop_pad_mode=2)
        return routed.to(x.dtype) + self.shared(x)

    def shared(self, x):
        return npu.npu_swiglu(x @ self.weights.shared_up) @ self.weights.shared_down


def dense(x, weights: Weights, config: Config):
    """The layer in one process, in float32, without routing: each expert sees each token, and counts where it was chosen.

    x [S, H] -> [S, H]
    """
    x = x.float()
    scores = torch.sigmoid(x @ weights.gate)
    ranked = scores + weights.bias
    per_group = ranked.view(len(x), config.groups, config.experts // config.groups)
    group_scores = per_group.topk(2, dim=-1).values.sum(-1)
    kept = torch.zeros_like(group_scores).scatter_(1, group_scores.topk(config.top_groups, dim=-1).indices, 1.0)
    ranked = ranked.masked_fill((kept == 0).repeat_interleave(per_group.shape[-1], dim=1), float("-inf"))
    chosen = ranked.topk(config.top_k, dim=-1).indices
    gathered = scores.gather(1, chosen)
    weight = torch.zeros_like(scores).scatter(1, chosen, gathered / gathered.sum(-1, keepdim=True) * config.scaling)

    def swiglu(value):
        left, right = value.chunk(2, dim=-1)
        return nn.functional.silu(left) * right

    def rounded(value):  # int8 with a scale per token, as numbers
        scale = value.abs().amax(-1, keepdim=True) / 127
        return (value / scale).round().nan_to_num() * scale if config.int8 else value

    up, down = weights.up.float(), weights.down.float()
    shared_up, shared_down = weights.shared_up.float(), weights.shared_down.float()
    if config.int8:
        (up, up_scale), (down, down_scale) = quantized(up), quantized(down)
        up, down = up * up_scale[:, None], down * down_scale.bfloat16().float()[:, None]
    inner = swiglu(torch.einsum("sh,ehi->esi", rounded(x), up))
    y = torch.einsum("esi,eih->esh", rounded(inner), down)
    return torch.einsum("se,esh->sh", weight, y) + swiglu(x @ shared_up) @ shared_down


SCENARIOS = {  # name -> tokens of each rank, which experts the bias favours, int8
    "even": (lambda ranks: [48] * ranks, None, False),
    "skewed": (lambda ranks: [64 >> rank for rank in range(ranks)], "first two groups", False),
    "a rank without tokens": (lambda ranks: [0] + [33] * (ranks - 1), None, False),
    "int8": (lambda ranks: [48 + rank for rank in range(ranks)], None, True),
    "int8, skewed": (lambda ranks: [17] * ranks, "first two groups", True),
}


def run(name, compiled, dtype):
    """One scenario on this rank: the largest difference to the dense layer, relative to its largest value, and the layer."""
    sizes, favoured, int8 = SCENARIOS[name]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    config = Config(
        int8=int8, dtype=dtype, experts=16 if 16 % ranks == 0 else 4 * ranks, groups=4 if 16 % ranks == 0 else ranks
    )
    bias = torch.zeros(config.experts)
    if favoured:
        bias[: config.experts // config.groups * 2] = 2.0
    weights = Weights(config, bias)
    x = torch.randn(sizes(ranks)[rank], config.hidden, generator=torch.Generator().manual_seed(rank + 1)).to(dtype)
    with torch.no_grad():
        expected = dense(x, weights, config)
        layer = Layer(weights.to(DEVICE), config)
        if compiled:
            import torchair

            layer.compile(torchair.get_npu_backend(compiler_config=torchair.CompilerConfig()))
        result = layer(x.to(DEVICE)).cpu().float()
    scale = expected.abs().max().clamp_min(1e-6) if expected.numel() else 1.0
    difference = float((result - expected).abs().max() / scale) if expected.numel() else 0.0
    return difference, layer


def picture(path, layers):
    """Tokens by rank and expert before the AlltoAll (a row: what a rank sends) and after (a row: what it received, from all)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(layers), 2, figsize=(11, 1 + 1.8 * len(layers)), squeeze=False)
    for row, (name, (sent, held)) in zip(axes, layers.items()):
        for axis, values, title in zip(row, (sent, held), ("sent", "computed")):
            image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=0)
            axis.set(title=f"{name}: tokens {title}", xlabel="expert", ylabel="rank", yticks=range(len(values)))
            figure.colorbar(image, ax=axis)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def routing(layer):
    """[N, all experts] before and after the AlltoAll, gathered from all ranks."""
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, (layer.seen["sent"].flatten().tolist(), layer.seen["received"].sum(0).tolist()))
    before = torch.tensor([sent for sent, _ in every])
    after = torch.zeros_like(before)
    for rank, (_, held) in enumerate(every):
        local = len(held)
        after[rank, rank * local : (rank + 1) * local] = torch.tensor(held)
    return before, after


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", metavar="FILE.png", help="draw the routing of each scenario")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this one; may be repeated")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)

    rank = int(os.environ["LOCAL_RANK"])
    if DEVICE == "npu":
        torch.npu.set_device(rank)
    dist.init_process_group("hccl" if DEVICE == "npu" else "gloo")  # the one line that chooses
    console = Console(quiet=rank != 0, highlight=False)
    console.print(f"{dist.get_world_size()} ranks, {dist.get_backend()}, {arguments.dtype} tensors on {DEVICE}")
    layers = {}
    for name in arguments.scenario or SCENARIOS:
        for compiled in (False, True) if DEVICE == "npu" else (False,):
            difference, layer = run(name, compiled, dtype)
            differences = [None] * dist.get_world_size()
            dist.all_gather_object(differences, difference)
            if not compiled:
                layers[name] = routing(layer)
            tolerance = 1e-5 if dtype == torch.float32 and not SCENARIOS[name][2] else 2e-2
            console.print(
                f"  {name}, {'compiled' if compiled else 'eager'}: differs from the dense layer by {max(differences):.1e}"
            )
            if not max(differences) <= tolerance:
                raise SystemExit(
                    f"{name}: rank {rank} differs from the dense layer by {difference:.1e} (of {tolerance:.0e})"
                )
    if arguments.picture and rank == 0:
        picture(arguments.picture, layers)
        console.print(f"routing drawn in {arguments.picture}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
