"""The experts' layer of an MoE model (grouped matmul, swiglu, grouped matmul) against a loop over the experts, on the CPU.

    python benchmarks/experts_layer.py [--quick]

The loop is what a model would have: for each expert a slice of the tokens, two products and a swiglu in the tokens' dtype, and a
concatenation. int8 has the peer that dequantizes first. The routing is skewed: a tenth of the experts has most of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import measure
import torch

HIDDEN, INTERMEDIATE = 256, 128
EXPERTS = (8, 32, 128, 256)
TOKENS = (1024, 64)


def routing(tokens: int, experts: int) -> torch.Tensor:
    """The running sum of the experts' tokens."""
    weights = torch.rand(experts).pow(4) + 1e-9
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


def derived(function, leaves, ends):
    """A step of training: the layer's gradients."""
    return torch.autograd.grad(function(*leaves, ends).sum(), leaves)


def rows() -> Iterator[measure.Row]:
    """A row for each dtype, number of tokens and of experts."""
    torch.manual_seed(0)
    for tokens in TOKENS:
        for experts in EXPERTS:
            ends = routing(tokens, experts)
            whole = torch.randn(tokens, HIDDEN), torch.randn(experts, HIDDEN, 2 * INTERMEDIATE)
            whole = (*whole, torch.randn(experts, INTERMEDIATE, HIDDEN))
            leaves = [tensor.clone().requires_grad_() for tensor in whole]
            x, up, down = (tensor.mul(30).clamp(-127, 127).to(torch.int8) for tensor in whole)
            scales = [torch.rand(size) / 99 for size in ((tokens,), (experts, 2 * INTERMEDIATE), (experts, HIDDEN))]
            quantized = x, scales[0], (up, scales[1], down, scales[2]), ends
            pairs = {
                "float32": (partial(layer, *whole, ends), partial(loop, *whole, ends)),
                "int8": (partial(quantized_layer, *quantized), partial(dequantizing_loop, *quantized)),
                "training in float32": (partial(derived, layer, leaves, ends), partial(derived, loop, leaves, ends)),
            }
            for dtype in (torch.bfloat16, torch.float16):
                half = [tensor.to(dtype) for tensor in whole]
                pairs[str(dtype)[6:]] = partial(layer, *half, ends), partial(loop, *half, ends)
            for name, (ours, peer) in pairs.items():
                times = measure.times({"layer": ours, "loop": peer})
                yield times.row(f"{name}, {tokens} tokens, {experts} experts", "layer", "loop", 1.0)


if __name__ == "__main__":
    measure.main("experts' layer against a loop over the experts", rows)
