"""A small Mixture-of-Experts decoder as public Ascend models write theirs: prefill, then decoding, in three modes, against a reference.

On the simulated device:  python -m moe_graph run --devices 2 examples/moe_model.py --ranks 2
On NPUs:                  python examples/moe_model.py --ranks 2

Grouped-query attention over a paged cache, a group-limited gate, experts spread over the ranks: a prefill takes the double routing
(npu_moe_re_routing and back), a step of decoding takes dispatch and combine. Each rank serves sequences of its own. The architecture is
Dots1 of transformers; where that is installed its logits in float32 are the reference, else those of moe_reference.py.

Symbols: T tokens of a pass, B sequences, N heads, G heads of keys and values, D their size, H hidden, E experts of a rank, k experts of a
token, R ranks, I inner size, A rows that a rank's experts compute.
"""

import argparse
import tempfile
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torch_npu  # noqa: F401  brings the device "npu"
import torchair
from moe_reference import PAGE, Config, Sequences, make_weights, quantized, reference
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from moe_graph import dumps, moe_un_routing

npu = torch.ops.npu
MODES = ("eager", "ge", "captured")
PAGES = 8  # of a rank's cache
TOLERANCE = {
    False: 3e-2,
    True: 5e-2,
}  # of the largest logit; True: int8 experts
DIFFERENCE, OTHERS = "largest difference of logits from {}", "tokens with other experts by rounding, of {}"


class Attention(nn.Module):
    """x [T, H] -> [T, H]. The cache: keys and values [pages, page, G * D] each."""

    def __init__(self, weights, at, config):
        super().__init__()
        self.config = config
        self.qkv = (
            torch.cat([weights[f"{at}{name}_proj.weight"] for name in "qkv"]).t().contiguous()
        )  # [H, (N + 2 G) D]
        self.out = weights[at + "o_proj.weight"].t().contiguous()  # [N * D, H]
        self.q_norm, self.k_norm = weights[at + "q_norm.weight"], weights[at + "k_norm.weight"]
        shape = (PAGES, PAGE, config.kv_heads * config.head_size)
        self.keys, self.values = (torch.zeros(shape, dtype=torch.bfloat16, device="npu") for _ in range(2))
        self.mask = torch.ones(2048, 2048, dtype=torch.bool, device="npu").triu(1)  # causal, for any length

    def forward(self, x, step):
        c = self.config
        q, k, v = (x @ self.qkv).split([heads * c.head_size for heads in (c.heads, c.kv_heads, c.kv_heads)], dim=-1)
        q = npu.npu_rms_norm(q.reshape(1, -1, c.heads, c.head_size), self.q_norm, c.epsilon)[0]  # [1, T, N, D]
        k = npu.npu_rms_norm(k.reshape(1, -1, c.kv_heads, c.head_size), self.k_norm, c.epsilon)[0]  # [1, T, G, D]
        q, k = (npu.npu_rotary_mul(value, step.cos, step.sin)[0] for value in (q, k))
        for cache, value in ((self.keys, k), (self.values, v)):
            npu.npu_scatter_nd_update_(cache.view(PAGES * PAGE, -1), step.slots, value.reshape(len(x), -1))
        fused = torchair.ops if isinstance(step.lengths, torch.Tensor) else npu
        mixed, _ = fused.npu_fused_infer_attention_score(
            q,
            self.keys,
            self.values,
            num_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            scale=c.head_size**-0.5,
            input_layout="TND",
            sparse_mode=3,
            atten_mask=self.mask,
            actual_seq_lengths=step.ends,
            actual_seq_lengths_kv=step.lengths,
            block_table=step.table,
            block_size=PAGE,
        )
        return mixed.reshape(len(x), -1) @ self.out


class MoE(nn.Module):
    """x [T, H] -> [T, H], and the experts [T, k] of each token."""

    def __init__(self, weights, at, config, int8):
        super().__init__()
        self.config, self.int8, self.ranks, self.rank = config, int8, *ranks_and_rank()
        local = config.experts // self.ranks
        mine = slice(self.rank * local, (self.rank + 1) * local)
        self.gate, self.bias = (
            weights[at + "gate.weight"].t().contiguous(),
            weights[at + "gate.e_score_correction_bias"],
        )
        up, down = weights[at + "experts.gate_up_proj"][mine], weights[at + "experts.down_proj"][mine]
        if int8:
            (up, self.up_scale), (down, down_scale) = quantized(up), quantized(down)
            self.down_scale = down_scale.bfloat16()
        self.up, self.down = (
            up.transpose(1, 2).contiguous(),
            down.transpose(1, 2).contiguous(),
        )  # [E, H, 2 I], [E, I, H]
        shared = {name: weights[f"{at}shared_experts.{name}_proj.weight"].t() for name in ("gate", "up", "down")}
        self.shared_up, self.shared_down = torch.cat([shared["gate"], shared["up"]], 1), shared["down"].contiguous()
        if self.ranks > 1:
            name = dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(self.rank)
            self.group = (name, self.ranks, self.rank, config.experts)

    def forward(self, x, prefill):
        c = self.config
        scores, chosen, _ = npu.npu_moe_gating_top_k(
            x.float() @ self.gate,
            c.top_k,
            bias=self.bias,
            k_group=c.top_groups,
            group_count=c.groups,
            group_select_mode=1,  # a group's score: the sum of its two best experts
            norm_type=1,  # sigmoid
            routed_scaling_factor=c.scaling,
        )
        shared = npu.npu_swiglu(x @ self.shared_up) @ self.shared_down
        way = self.double_routing if prefill or self.ranks == 1 else self.dispatch_combine
        return way(x, scores, chosen, shared), chosen

    def experts(self, rows, counts, scales):
        """rows [A, H] in the order of the experts, counts [E], of int8 rows scales [A] -> [A, H]"""
        how = dict(group_list=counts, group_list_type=1, group_type=0, split_item=2)
        if not self.int8:
            (inner,) = npu.npu_grouped_matmul([rows], [self.up], **how)  # [A, 2 I]
            return npu.npu_grouped_matmul([npu.npu_swiglu(inner)], [self.down], **how)[0]
        (inner,) = npu.npu_grouped_matmul([rows], [self.up], output_dtype=torch.int32, **how)
        as_int8 = dict(weight_scale=self.up_scale, activation_scale=scales, group_index=counts, activate_left=True)
        inner, inner_scale = npu.npu_dequant_swiglu_quant(inner, quant_mode=1, **as_int8)  # int8 [A, I], float32 [A]
        as_bfloat16 = dict(scale=[self.down_scale], per_token_scale=[inner_scale], output_dtype=torch.bfloat16)
        return npu.npu_grouped_matmul([inner], [self.down], **as_bfloat16, **how)[0]

    def double_routing(self, x, scores, chosen, shared):
        """Copies of the tokens sorted by expert, so by rank; an AlltoAll; sorted by expert again, from source rank; and all of it back."""
        copies, order, counts, scales = npu.npu_moe_init_routing_v2(
            x,
            chosen,
            expert_num=self.config.experts,
            expert_tokens_num_type=1,
            expert_tokens_num_flag=True,
            quant_mode=1 if self.int8 else -1,
            active_expert_range=[0, self.config.experts],
        )
        if self.ranks == 1:
            y = self.experts(copies, counts, scales)
        else:
            received = torch.empty_like(counts)
            dist.all_to_all_single(received, counts)
            counts, received = counts.view(self.ranks, -1), received.view(self.ranks, -1)  # [R, E]
            sent, arrived = torch.stack([counts.sum(1), received.sum(1)]).tolist()  # the host waits for the device
            rows = exchange(copies, sent, arrived)
            scales = exchange(scales, sent, arrived) if self.int8 else None
            rows, scales, _, counts = npu.npu_moe_re_routing(rows, received, per_token_scales=scales)
            y = exchange(moe_un_routing(self.experts(rows, counts, scales), received).tokens, arrived, sent)
        return npu.npu_moe_finalize_routing(y, shared, None, None, scores.to(y.dtype), order, None, drop_pad_mode=2)

    def dispatch_combine(self, x, scores, chosen, shared):
        rows, scales, assist, counts, received, tp_received, _ = npu.npu_moe_distribute_dispatch_v2(
            x, chosen, *self.group, quant_mode=2 if self.int8 else 0
        )
        y = self.experts(rows, counts, scales)
        further = dict(tp_send_counts=tp_received, shared_expert_x=shared)
        return npu.npu_moe_distribute_combine_v2(y, chosen, assist, received, scores, *self.group, **further)


def exchange(x, sent, received):
    """AlltoAll: sent[r] rows of x to rank r, received[r] from it."""
    out = x.new_empty((sum(received), *x.shape[1:]))
    dist.all_to_all_single(out, x, received, sent)
    return out


class Decoder(nn.Module):
    """One pass of a rank: logits [T, vocabulary], and the chosen experts [layers, T, k]."""

    def __init__(self, weights, config, int8):
        super().__init__()
        self.weights, self.epsilon = weights, config.epsilon
        ats = [f"model.layers.{layer}." for layer in range(config.layers)]
        self.attention = nn.ModuleList([Attention(weights, at + "self_attn.", config) for at in ats])
        self.moe = nn.ModuleList([MoE(weights, at + "mlp.", config, int8) for at in ats])
        self.norms = [weights[f"{at}{name}_layernorm.weight"] for at in ats for name in ("input", "post_attention")]
        self.norms.append(weights["model.norm.weight"])
        self.head = weights["lm_head.weight"].t().contiguous()

    def forward(self, step):
        x = F.embedding(step.ids, self.weights["model.embed_tokens.weight"])  # [T, H]
        every, norms = [], iter(self.norms)
        y = npu.npu_rms_norm(x, next(norms), self.epsilon)[0]
        for attention, moe in zip(self.attention, self.moe):
            y, _, x = npu.npu_add_rms_norm(attention(y, step), x, next(norms), self.epsilon)
            y, chosen = moe(y, step.prefill)
            y, _, x = npu.npu_add_rms_norm(y, x, next(norms), self.epsilon)
            every.append(chosen)
        return (y @ self.head).float(), torch.stack(every)


def ranks_and_rank():
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


class Collectives(TorchDispatchMode):
    """Counts the operators that communicate."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.namespace == "c10d" or "distribute" in function.name()
        return function(*args, **(kwargs or {}))


class OneGraph:
    """A decoder whose step is one graph. `graphs` counts what was compiled, `folder` gets a dump of it."""

    def __init__(self, decoder, mode, folder):
        config = torchair.CompilerConfig()
        config.mode = "reduce-overhead" if mode == "captured" else "max-autotune"
        config.debug.graph_dump.type, config.debug.graph_dump.path = ("py" if mode == "captured" else "pbtxt"), folder
        backend, self.graphs = torchair.get_npu_backend(compiler_config=config), 0

        def counting(graph_module, inputs):
            self.graphs += 1
            return backend(graph_module, inputs)

        torch._dynamo.reset()
        torch._dynamo.config.specialize_float = True  # the model's constants are no inputs of its graph
        self.run = torch.compile(decoder, backend=counting, dynamic=mode == "captured", fullgraph=True)

    def __call__(self, step):
        for tensor in step:
            if isinstance(tensor, torch.Tensor):
                torch._dynamo.mark_static(
                    tensor
                )  # what changes from step to step of a captured graph are numbers on the host
        return self.run(step)


def run(mode, config, weights, sequences, logits_of, int8, advance):
    """A column of the table for this rank. The reference goes to the experts that the model has chosen."""
    ranks, rank = ranks_and_rank()
    decoder = Decoder({name: value.npu() for name, value in weights.items()}, config, int8)
    outside, collectives = 0, Collectives()
    found = [[] for _ in sequences.ids]  # of each sequence: the logits of the last token of each pass
    experts = [[] for _ in sequences.ids]  # and the experts of all its tokens, [layers, tokens of the pass, k] each
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        graph = OneGraph(decoder, mode, folder) if mode != "eager" else None
        for number in range(sequences.steps + 1):
            step = sequences.step(number, mode)
            with collectives if number and not graph else nullcontext():
                logits, chosen = (graph if graph and number else decoder)(step)
            ends = torch.as_tensor(step.ends).cpu()
            parts = chosen.cpu().split(ends.diff(prepend=ends.new_zeros(1)).tolist(), dim=1)
            for at, (row, part) in enumerate(zip(logits.cpu()[ends - 1], parts)):
                found[at].append(row)
                experts[at].append(part)
            if number:
                outside += int((chosen // (config.experts // ranks) != rank).sum())
            advance()
        nodes = dumps.read(folder)[-1].nodes if graph else []
    difference, others = 0.0, 0
    for ids, prompt, rows, parts in zip(sequences.ids, sequences.prompts, found, experts):
        chosen = torch.cat(parts, dim=1)
        with torch.no_grad():
            expected, own = logits_of(ids, chosen)
        errors = (torch.stack(rows) - expected[prompt - 1 :]).abs()
        difference = max(difference, float(errors.max() / expected.abs().max()))
        others += int((chosen.sort().values != own.sort().values).any(-1).any(0).sum())
    communicating = sum("distribute" in node.type.lower() for node in nodes)
    there = config.hidden + 4 if int8 else 2 * config.hidden  # bytes of a row on its way to an expert, with its scale
    decoded = sequences.steps * len(sequences.prompts)
    return {
        "tokens of a rank": sum(map(len, sequences.ids)),
        DIFFERENCE: difference,
        OTHERS: others,
        "nodes of the graph": len(nodes) or "-",
        "collectives of a decode step": communicating if graph else collectives.count // sequences.steps,
        "bytes to other ranks and back, a decoded token": outside * (there + 2 * config.hidden) // decoded,
        "recompilations": graph.graphs - 1 if graph else "-",
    }


def work(rank, arguments, rendezvous):
    """One rank: every mode, one after another."""
    torch.npu.set_device(rank)
    if arguments.ranks > 1:
        dist.init_process_group("hccl", init_method=rendezvous, rank=rank, world_size=arguments.ranks)
    config = Config()
    weights = make_weights(config, arguments.int8)
    name, logits_of = reference(config, weights, arguments.plain)
    sequences = Sequences(config, rank, arguments.steps)
    with Progress(disable=rank != 0, transient=True) as progress:
        task = progress.add_task("passes", total=len(arguments.mode) * (arguments.steps + 1))
        columns = [
            run(mode, config, weights, sequences, logits_of, arguments.int8, lambda: progress.advance(task))
            for mode in arguments.mode
        ]
    differences = torch.tensor([column[DIFFERENCE] for column in columns]).npu()
    others = torch.tensor([column[OTHERS] for column in columns]).npu()
    tokens = torch.tensor(sum(map(len, sequences.ids))).npu()
    if arguments.ranks > 1:
        dist.all_reduce(differences, dist.ReduceOp.MAX)
        dist.all_reduce(others)
        dist.all_reduce(tokens)
        dist.destroy_process_group()
    if rank == 0:
        experts = "int8" if arguments.int8 else "bfloat16"
        table = Table("", *arguments.mode, title=f"{arguments.ranks} ranks, {experts} experts")
        for column, difference, other in zip(columns, differences.tolist(), others.tolist()):
            column.update({DIFFERENCE: f"{difference:.2%}", OTHERS: other})
        for label in columns[0]:
            shown = label.format(name if label == DIFFERENCE else int(tokens))
            table.add_row(shown, *(str(column[label]) for column in columns))
        Console().print(table)
    if float(differences.max()) > TOLERANCE[arguments.int8] or int(others.max()) > max(1, int(tokens) // 10):
        raise SystemExit(f"the logits, or the experts, are not those of {name}: see the table")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", action="append", choices=MODES, help="may be repeated; all of them otherwise")
    parser.add_argument("--ranks", type=int, default=1, help="processes, a device each")
    parser.add_argument("--steps", type=int, default=4, help="tokens that each sequence decodes")
    parser.add_argument("--int8", action="store_true", help="experts with int8 weights and tokens")
    parser.add_argument(
        "--plain", action="store_true", help="compare with plain PyTorch even where transformers is installed"
    )
    arguments = parser.parse_args()
    arguments.mode = arguments.mode or list(MODES)
    with tempfile.TemporaryDirectory() as folder:
        given = (arguments, f"file://{folder}/rendezvous")
        work(0, *given) if arguments.ranks == 1 else torch.multiprocessing.spawn(work, given, nprocs=arguments.ranks)


if __name__ == "__main__":
    main()
