"""One small Mixture-of-Experts layer, spread over the ranks in each way of `WAYS`, in each mode, against one process' dense layer.

A process is one rank of the ways that its arguments name. It prints `WAY, MODE, ROUTING: DIFFERENCE on rank N` (of the largest value of
the dense layer) and, of each way and mode, `WAY, MODE: N graphs, N captures on rank N`.

Symbols: S tokens of this rank, k experts a token goes to, E experts on a rank, H hidden, I inner size of this rank's part, A rows.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torchair

from moe_graph.simulator import report

specification = importlib.util.spec_from_file_location("ep_moe", Path(__file__).parents[2] / "examples" / "ep_moe.py")
ep_moe = importlib.util.module_from_spec(specification)
sys.modules["ep_moe"] = ep_moe
specification.loader.exec_module(ep_moe)

npu = torch.ops.npu
MOST = 16  # tokens of a rank


@dataclass(frozen=True)
class Way:
    """`ep` groups of experts times `tp` parts of each expert; `gathered`: each rank has tokens of its own, which all of them compute."""

    ep: int
    tp: int
    gathered: bool = False


WAYS = {  # world size -> name -> way
    2: {"tp 2": Way(1, 2), "ep 2": Way(2, 1), "dp 2": Way(1, 2, True)},
    3: {"tp 3": Way(1, 3), "ep 3": Way(3, 1), "dp 3": Way(1, 3, True)},
    4: {"tp 4": Way(1, 4), "ep 4": Way(4, 1), "dp 4": Way(1, 4, True), "ep 2 x tp 2": Way(2, 2)},
    8: {
        "tp 8": Way(1, 8),
        "ep 8": Way(8, 1),
        "dp 8": Way(1, 8, True),
        "ep 4 x tp 2": Way(4, 2),
        "ep 2 x tp 4": Way(2, 4),
    },
}
ROUTINGS = {  # name -> tokens of the rank with this number, the experts that the bias favours, those that it keeps out
    "even": (lambda rank: 12, [], []),
    "uneven": (lambda rank: 3 + 5 * rank % 11, [], []),
    "all to the first experts": (lambda rank: 9, [0, 1], []),
    "experts without tokens": (lambda rank: MOST, [], [1, 3]),
    "ranks without tokens": (lambda rank: 7 * (rank % 2), [], []),
    "nobody has tokens": (lambda rank: 0, [], []),
}
MODES = ("eager", "ge", "captured")


def config_of(ranks: int) -> "ep_moe.Config":
    """24 experts in one group of 3 ranks, else 16; I is divisible by all."""
    return ep_moe.Config(hidden=32, inner=48, experts=24 if ranks == 3 else 16, top_k=2, groups=1, top_groups=1)


class Layer(torch.nn.Module):
    """x [S, H], mask [S] (true: a token, in front), bias [experts] -> [S, H]; all ranks of a tp group have the same x unless gathered."""

    def __init__(self, way: Way, weights, config, ep_group, tp_group):
        super().__init__()
        self.way, self.config, self.ep_group, self.tp_group = way, config, ep_group, tp_group
        self.ep_rank, tp_rank = dist.get_rank(ep_group), dist.get_rank(tp_group)
        self.ep_name = ep_group._get_backend(torch.device("npu")).get_hccl_comm_name(dist.get_rank())
        local, inner = config.experts // way.ep, config.inner // way.tp
        mine, part = (
            slice(self.ep_rank * local, (self.ep_rank + 1) * local),
            slice(tp_rank * inner, (tp_rank + 1) * inner),
        )
        self.gate = weights.gate.data
        self.up, self.down = self.parts(weights.up.data[mine], part), weights.down.data[mine][:, part].contiguous()
        self.shared_up, self.shared_down = self.parts(weights.shared_up.data, part), weights.shared_down.data[part]

    @staticmethod
    def parts(up, part):
        """The columns `part` of both halves: [..., H, 2 * inner] -> [..., H, 2 I]"""
        left, right = up.chunk(2, dim=-1)
        return torch.cat((left[..., part], right[..., part]), dim=-1).contiguous()

    def forward(self, x, mask, bias):
        if self.way.gathered:
            x = self.gather(x)
        scores, chosen, _ = npu.npu_moe_gating_top_k(
            x.float() @ self.gate, self.config.top_k, bias=bias, norm_type=1, routed_scaling_factor=self.config.scaling
        )
        y = npu.npu_swiglu(x @ self.shared_up) @ self.shared_down
        y = y + (self.exchanged(x, mask, scores, chosen) if self.way.ep > 1 else self.local(x, scores, chosen))
        if self.way.gathered:
            return self.scatter(y)
        if self.way.tp > 1:
            dist.all_reduce(y, group=self.tp_group)
        return y

    def experts(self, rows, counts):
        """rows [A, H] in the order of the experts, counts [E] -> [A, H]"""
        how = dict(group_list=counts, group_list_type=1, group_type=0, split_item=2)
        (inner,) = npu.npu_grouped_matmul([rows], [self.up], **how)  # [A, 2 I]
        return npu.npu_grouped_matmul([npu.npu_swiglu(inner)], [self.down], **how)[0]

    def local(self, x, scores, chosen):
        """This rank has a part of every expert."""
        copies, order, counts, _ = npu.npu_moe_init_routing_v2(
            x,
            chosen,
            expert_num=self.config.experts,
            expert_tokens_num_type=1,
            expert_tokens_num_flag=True,
            quant_mode=-1,
            active_expert_range=[0, self.config.experts],
        )
        y = self.experts(copies, counts)
        return npu.npu_moe_finalize_routing(y, None, None, None, scores.to(y.dtype), order, None, drop_pad_mode=2)

    def exchanged(self, x, mask, scores, chosen):
        """This rank has some of the experts."""
        group = (self.ep_name, self.way.ep, self.ep_rank, self.config.experts)
        common = dict(x_active_mask=mask, global_bs=MOST * self.way.ep)
        rows, _, assist, counts, received, tp_received, _ = npu.npu_moe_distribute_dispatch_v2(
            x, chosen, *group, **common
        )
        y = self.experts(rows, counts)
        return npu.npu_moe_distribute_combine_v2(
            y, chosen, assist, received, scores.float(), *group, tp_send_counts=tp_received, **common
        )

    def gather(self, x):
        every = x.new_empty((self.way.tp * x.shape[0], x.shape[1]))
        dist.all_gather_into_tensor(every, x, group=self.tp_group)
        return every

    def scatter(self, y):
        mine = y.new_empty((y.shape[0] // self.way.tp, y.shape[1]))
        dist.reduce_scatter_tensor(mine, y, group=self.tp_group)
        return mine


def compiled(layer, mode, graphs):
    """The layer as one graph; `graphs` gets what Dynamo made."""
    config = torchair.CompilerConfig()
    if mode == "captured":
        config.mode = "reduce-overhead"
    backend = torchair.get_npu_backend(compiler_config=config)

    def counting(graph_module, inputs):
        graphs.append(graph_module)
        return backend(graph_module, inputs)

    return torch.compile(layer, backend=counting, dynamic=False if mode == "captured" else None, fullgraph=True)


def padded_size(way, mode, sizes, mine):
    """Eager takes the tokens there are, GE at least two, a captured graph has one size; who gathers must agree on one."""
    if mode == "captured":
        return MOST
    size = max(sizes) if way.gathered else mine
    return max(size, 2) if mode == "ge" else size


def run(name, way, mode, ep_group, tp_group):
    config = config_of(dist.get_world_size())
    weights = ep_moe.Weights(config, torch.zeros(config.experts))
    layer = Layer(way, ep_moe.Weights(config, weights.bias.clone()).npu(), config, ep_group, tp_group)
    graphs = []
    torch._dynamo.reset()
    function = layer if mode == "eager" else compiled(layer, mode, graphs)
    with report.record() as seen, torch.no_grad():
        for routing, (size_of, favoured, kept_out) in ROUTINGS.items():
            sources = dist.get_world_size() if way.gathered else way.ep
            sizes = [size_of(rank) for rank in range(sources)]
            source = dist.get_rank() if way.gathered else dist.get_rank(ep_group)
            bias = torch.zeros(config.experts)
            bias[favoured], bias[kept_out] = 3.0, -3.0
            weights.bias = bias
            size = padded_size(way, mode, sizes, sizes[source])
            x = torch.randn(size, config.hidden, generator=torch.Generator().manual_seed(source)).to(config.dtype)
            mask = torch.arange(size) < sizes[source]
            given = [x.npu(), mask.npu()]
            if mode == "ge":
                for tensor in given:
                    torch._dynamo.mark_dynamic(tensor, 0)  # a second graph, for another size, would be an error
            found = function(*given, bias.npu()).cpu()[: sizes[source]].float()
            expected = ep_moe.dense(x[: sizes[source]], weights, config)
            assert found.shape == expected.shape
            scale = expected.abs().max() if expected.numel() else 1.0
            difference = float((found - expected).abs().max() / scale) if expected.numel() else 0.0
            say(f"{name}, {mode}, {routing}: {difference:.2e}")
    captures = sum(
        count for (_, launches), count in seen.captures.items() if launches
    )  # torchair's first one, of its pool, is empty
    say(f"{name}, {mode}: {len(graphs)} graphs, {captures} captures")


def say(line):
    os.write(1, f"{line} on rank {dist.get_rank()}\n".encode())  # in one piece: the ranks share a pipe


def main():
    torchair.patch_for_hcom()
    torch.npu.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("hccl")
    rank, size = dist.get_rank(), dist.get_world_size()
    for name, way in WAYS[size].items():
        if name not in sys.argv[1:]:
            continue
        # Ranks with the same part of the experts exchange tokens; ranks with the same experts add up.
        ep_groups = [dist.new_group(list(range(part, size, way.tp))) for part in range(way.tp)]
        tp_groups = [dist.new_group(list(range(first, first + way.tp))) for first in range(0, size, way.tp)]
        for mode in MODES:
            run(name, way, mode, ep_groups[rank % way.tp], tp_groups[rank // way.tp])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
