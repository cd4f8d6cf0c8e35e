"""The compute operators of an expert-parallel MoE layer against straightforward PyTorch on the CPU, as ratios of medians from one run.

    python benchmarks/family.py [--quick]

The experts' layer is grouped matmul, swiglu, grouped matmul. Its peer is the loop that a model would have: for each expert a slice
of the tokens, two products and a swiglu in the tokens' dtype, and a concatenation. int8 has the peer that dequantizes first. The way
back to source-rank order has the peer of a sort of the index. Below 1 this package is faster.
"""

from __future__ import annotations

import argparse
from functools import partial

import moe_graph  # isort: skip  first: it makes torch importable where a torch_npu wheel lies without CANN
import torch
from re_routing import make, seconds, sorted_back
from rich.console import Console
from rich.table import Table

HIDDEN, INTERMEDIATE = 256, 128
EXPERTS = (8, 32, 128, 256)
TOKENS = 1024
DECODE_TOKENS = 64


def routing(tokens, experts, skew):
    """The running sum of the experts' tokens; skewed, a tenth of the experts has most of them."""
    weights = torch.rand(experts).pow(skew) + 1e-9
    return torch.bincount(torch.multinomial(weights, tokens, replacement=True), minlength=experts).cumsum(0)


def layer(x, up, down, ends):
    """The experts' layer of the family's operators."""
    npu = torch.ops.npu
    (hidden,) = npu.npu_grouped_matmul([x], [up], group_list=ends, group_type=0, split_item=3)
    return npu.npu_grouped_matmul([npu.npu_swiglu(hidden)], [down], group_list=ends, group_type=0, split_item=3)[0]


def loop(x, up, down, ends):
    """The same by a loop over the experts."""
    results, start = [], 0
    for first, second, end in zip(up.unbind(), down.unbind(), ends.tolist()):
        gate, linear = (x[start:end] @ first).chunk(2, -1)
        results.append((torch.nn.functional.silu(gate) * linear) @ second)
        start = end
    return torch.cat(results)


def quantized_layer(x, scale, weights, ends):
    """The layer of int8 tokens and weights."""
    npu, (up, up_scale, down, down_scale) = torch.ops.npu, weights
    shared = {"group_list": ends, "group_type": 0, "split_item": 3}
    (hidden,) = npu.npu_grouped_matmul([x], [up], output_dtype=torch.int32, **shared)
    sizes = ends.diff(prepend=ends.new_zeros(1))
    y, y_scale = npu.npu_dequant_swiglu_quant(
        hidden, weight_scale=up_scale, activation_scale=scale, group_index=sizes, activate_left=True, quant_mode=1
    )
    return npu.npu_grouped_matmul(
        [y], [down], scale=[down_scale], per_token_scale=[y_scale], output_dtype=torch.bfloat16, **shared
    )[0]


def dequantizing_loop(x, scale, weights, ends):
    """A loop over the experts that dequantizes tokens and weights to float32."""
    up, up_scale, down, down_scale = weights
    result, start = torch.empty(x.shape, dtype=torch.bfloat16), 0
    for expert, end in enumerate(ends.tolist()):
        tokens = x[start:end].float() * scale[start:end, None]
        gate, linear = (tokens @ (up[expert].float() * up_scale[expert])).chunk(2, -1)
        hidden = torch.nn.functional.silu(gate) * linear
        result[start:end] = hidden @ (down[expert].float() * down_scale[expert])
        start = end
    return result


def experts_table(rounds):
    table = Table(
        "tokens",
        "experts",
        "float32 ms",
        "/ loop",
        "bfloat16 / loop",
        "int8 / dequantizing loop",
        "training / loop",
        title=f"experts' layer, H {HIDDEN}, intermediate {INTERMEDIATE}, skewed routing",
    )
    for tokens in (TOKENS, DECODE_TOKENS):
        for experts in EXPERTS:
            ends = routing(tokens, experts, skew=4)
            x = torch.randn(tokens, HIDDEN)
            up, down = torch.randn(experts, HIDDEN, 2 * INTERMEDIATE), torch.randn(experts, INTERMEDIATE, HIDDEN)
            half = [tensor.bfloat16() for tensor in (x, up, down)]
            whole = [tensor.mul(30).clamp(-127, 127).to(torch.int8) for tensor in (x, up, down)]
            scales = [torch.rand(size) / 99 for size in ((tokens,), (experts, 2 * INTERMEDIATE), (experts, HIDDEN))]
            weights = whole[1], scales[1], whole[2], scales[2]
            leaves = [tensor.clone().requires_grad_() for tensor in (x, up, down)]
            times = seconds(
                {
                    "layer": partial(layer, x, up, down, ends),
                    "loop": partial(loop, x, up, down, ends),
                    "layer half": partial(layer, *half, ends),
                    "loop half": partial(loop, *half, ends),
                    "layer int8": partial(quantized_layer, whole[0], scales[0], weights, ends),
                    "loop int8": partial(dequantizing_loop, whole[0], scales[0], weights, ends),
                    "training": lambda leaves=leaves, ends=ends: torch.autograd.grad(
                        layer(*leaves, ends).sum(), leaves
                    ),
                    "training loop": lambda leaves=leaves, ends=ends: torch.autograd.grad(
                        loop(*leaves, ends).sum(), leaves
                    ),
                },
                rounds,
            )
            table.add_row(
                str(tokens),
                str(experts),
                f"{times['layer'] * 1e3:.2f}",
                f"{times['layer'] / times['loop']:.2f}",
                f"{times['layer half'] / times['loop half']:.2f}",
                f"{times['layer int8'] / times['loop int8']:.2f}",
                f"{times['training'] / times['training loop']:.2f}",
            )
    return table


def way_back_table(rounds):
    table = Table("tokens", "N x E", "un-routing ms", "/ argsort", title=f"way back, H {HIDDEN}, bfloat16")
    for tokens in (TOKENS, 64 * TOKENS):
        for ranks, experts in ((8, 8), (16, 16), (16, 256)):
            x, counts, _ = make(tokens, HIDDEN, ranks, experts, torch.bfloat16)
            routed = moe_graph.moe_re_routing(x, counts)
            times = seconds(
                {
                    "un_routing": partial(moe_graph.moe_un_routing, routed.permute_tokens, counts),
                    "argsort": partial(sorted_back, routed.permute_tokens, routed.permute_token_idx),
                },
                rounds,
            )
            table.add_row(
                str(tokens),
                f"{ranks} x {experts}",
                f"{times['un_routing'] * 1e3:.2f}",
                f"{times['un_routing'] / times['argsort']:.2f}",
            )
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 3 if parser.parse_args().quick else 9
    torch.manual_seed(0)
    console = Console()
    console.print(experts_table(rounds))
    console.print(way_back_table(rounds))


if __name__ == "__main__":
    main()
