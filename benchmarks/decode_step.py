"""One decode step of examples/moe_model.py on the simulated device, in each mode, against the same mathematics in plain CPU PyTorch.

    python benchmarks/decode_step.py [--quick]

The peer is what one writes without the family's operators: keys and values of each sequence in a tensor of its own, a loop over the
chosen experts, bfloat16 throughout. Its logits are compared with the device's before anything is timed.
"""

from __future__ import annotations

import moe_graph.simulator  # noqa: F401  isort: skip  first: it starts the device

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import measure
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from moe_model import Decoder, OneGraph  # noqa: E402
from moe_reference import Config, Sequences, make_weights, rotation  # noqa: E402

LIMITS = {"eager": 1.5, "ge": 1.2, "captured": 1.2}
LONGEST = 64  # places of the peer's cache


class Plain:
    """The model on CPU tensors, a token of each sequence at a time."""

    def __init__(self, weights: dict[str, torch.Tensor], config: Config, sequences: int) -> None:
        self.c, self.w = config, weights
        shape = (config.layers, sequences, LONGEST, config.kv_heads, config.head_size)
        self.keys, self.values = (torch.zeros(shape, dtype=torch.bfloat16) for _ in range(2))

    def norm(self, x, name):
        return F.rms_norm(x, x.shape[-1:], self.w[name], self.c.epsilon)

    def attention(self, x, layer, positions, cos, sin):
        c, at = self.c, f"model.layers.{layer}.self_attn."
        q, k, v = (F.linear(x, self.w[f"{at}{name}_proj.weight"]).view(len(x), -1, c.head_size) for name in "qkv")
        q, k = self.norm(q, at + "q_norm.weight"), self.norm(k, at + "k_norm.weight")
        q, k = (y * cos + torch.cat((-y.chunk(2, -1)[1], y.chunk(2, -1)[0]), -1) * sin for y in (q, k))
        mixed = []
        for number, position in enumerate(positions):
            self.keys[layer, number, position], self.values[layer, number, position] = k[number], v[number]
            past = [cache[layer, number, : position + 1].transpose(0, 1)[None] for cache in (self.keys, self.values)]
            mixed.append(F.scaled_dot_product_attention(q[number, None, :, None], *past, enable_gqa=True).flatten())
        return F.linear(torch.stack(mixed), self.w[at + "o_proj.weight"])

    def experts(self, x, layer):
        c, at = self.c, f"model.layers.{layer}.mlp."
        scores = F.linear(x.float(), self.w[at + "gate.weight"]).sigmoid()
        ranked = (scores + self.w[at + "gate.e_score_correction_bias"]).view(len(x), c.groups, -1)
        best = ranked.topk(2).values.sum(-1).topk(c.top_groups).indices
        kept = torch.zeros(len(x), c.groups).scatter_(1, best, 1.0)
        chosen = (ranked * kept[..., None]).flatten(1).topk(c.top_k).indices
        weight = F.normalize(scores.gather(1, chosen), p=1, dim=1) * c.scaling
        gate, up, down = (self.w[f"{at}shared_experts.{name}_proj.weight"] for name in ("gate", "up", "down"))
        y = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
        for expert in chosen.unique().tolist():
            token, place = (chosen == expert).nonzero(as_tuple=True)
            gate, up = F.linear(x[token], self.w[at + "experts.gate_up_proj"][expert]).chunk(2, -1)
            out = F.linear(F.silu(gate) * up, self.w[at + "experts.down_proj"][expert])
            y.index_add_(0, token, out * weight[token, place, None].to(out.dtype))
        return y

    def __call__(self, ids, positions):
        """ids, positions [B] -> logits [B, vocabulary]"""
        cos, sin = (value[0].bfloat16() for value in rotation(self.c, torch.tensor(positions)))
        x = F.embedding(ids, self.w["model.embed_tokens.weight"])
        for layer in range(self.c.layers):
            at = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, at + "input_layernorm.weight"), layer, positions, cos, sin)
            x = x + self.experts(self.norm(x, at + "post_attention_layernorm.weight"), layer)
        return F.linear(self.norm(x, "model.norm.weight"), self.w["lm_head.weight"]).float()


@torch.no_grad()
def rows() -> Iterator[measure.Row]:
    """A row for each mode."""
    config = Config()
    weights = make_weights(config, False)
    sequences = Sequences(config, 0, 1)
    plain = Plain(weights, config, len(sequences.ids))
    for number in range(max(sequences.prompts)):  # the prompts, token by token; the shorter one waits at its last
        at = [min(number, prompt - 1) for prompt in sequences.prompts]
        plain(torch.stack([ids[position] for ids, position in zip(sequences.ids, at)]), at)
    ids, positions = torch.stack([s[p] for s, p in zip(sequences.ids, sequences.prompts)]), list(sequences.prompts)
    expected = plain(ids, positions)
    for mode, limit in LIMITS.items():
        decoder = Decoder({name: value.npu() for name, value in weights.items()}, config, False)
        decoder(sequences.step(0, mode))
        with tempfile.TemporaryDirectory() as folder:
            run = decoder if mode == "eager" else OneGraph(decoder, mode, folder)
            step = sequences.step(1, mode)
            difference = (run(step)[0].cpu() - expected).abs().max() / expected.abs().max()
            if difference > 0.05:
                raise SystemExit(f"{mode}: the logits differ from plain PyTorch's by {difference:.1%} of the largest")
            times = measure.times(
                {"device": lambda run=run, step=step: run(step), "plain": lambda: plain(ids, positions)}
            )
            yield times.row(f"decode step, {mode}", "device", "plain", limit)


if __name__ == "__main__":
    measure.main("one decode step of examples/moe_model.py against plain CPU PyTorch", rows)
