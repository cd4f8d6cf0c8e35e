"""What moe_model.py computes with: sizes, random weights, float32 logits by transformers or by plain PyTorch, and the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

PAGE = 128  # tokens of a page of the cache


@dataclass(frozen=True)
class Config:
    """Sizes. Each of the `layers` has a shared expert of the size of the others."""

    vocabulary: int = 256
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 128
    experts: int = 16  # of all ranks
    top_k: int = 4
    groups: int = 4  # a token goes to experts of `top_groups` of these
    top_groups: int = 2
    inner: int = 64
    scaling: float = 2.5
    epsilon: float = 1e-6
    theta: float = 10000.0


def make_weights(config: Config, int8: bool) -> dict[str, torch.Tensor]:
    """Random bfloat16 weights under transformers' names. int8: the experts' are float32 numbers that int8 and a scale per channel hold."""
    generator = torch.Generator().manual_seed(0)
    c, weights = config, {}

    def normal(name, *shape, deviation=None, dtype=torch.bfloat16):
        weights[name] = (torch.randn(*shape, generator=generator) * (deviation or shape[-1] ** -0.5)).to(dtype)

    def ones(name, size):
        weights[name] = torch.ones(size, dtype=torch.bfloat16)

    normal("model.embed_tokens.weight", c.vocabulary, c.hidden, deviation=1.0)
    normal("lm_head.weight", c.vocabulary, c.hidden)
    ones("model.norm.weight", c.hidden)
    for at in (f"model.layers.{layer}." for layer in range(c.layers)):
        ones(at + "input_layernorm.weight", c.hidden)
        ones(at + "post_attention_layernorm.weight", c.hidden)
        for name, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
            normal(f"{at}self_attn.{name}_proj.weight", heads * c.head_size, c.hidden)
        ones(at + "self_attn.q_norm.weight", c.head_size)
        ones(at + "self_attn.k_norm.weight", c.head_size)
        normal(at + "self_attn.o_proj.weight", c.hidden, c.heads * c.head_size)
        normal(at + "mlp.gate.weight", c.experts, c.hidden, dtype=torch.float32)
        weights[at + "mlp.gate.e_score_correction_bias"] = torch.linspace(0, 0.1, c.experts)
        normal(at + "mlp.experts.gate_up_proj", c.experts, 2 * c.inner, c.hidden)
        normal(at + "mlp.experts.down_proj", c.experts, c.hidden, c.inner)
        normal(at + "mlp.shared_experts.gate_proj.weight", c.inner, c.hidden)
        normal(at + "mlp.shared_experts.up_proj.weight", c.inner, c.hidden)
        normal(at + "mlp.shared_experts.down_proj.weight", c.hidden, c.inner)
    for name in [name for name in weights if int8 and ".experts." in name]:
        values, scale = quantized(weights[name])
        weights[name] = values * scale[..., None]  # float32
    return weights


def quantized(weight):
    """int8 per output channel. weight [E, M, K] -> int8 [E, M, K], float32 scales [E, M]"""
    scale = weight.float().abs().amax(dim=-1) / 127
    return (weight / scale[..., None]).round().to(torch.int8), scale


def rotation(config, positions):
    """cos and sin, [1, T, 1, D]: both halves of D turn by the same angles. positions [T]"""
    angles = positions[:, None] * config.theta ** -(torch.arange(0, config.head_size, 2) / config.head_size)
    angles = torch.cat((angles, angles), dim=-1)[None, :, None]
    return angles.cos(), angles.sin()


def reference(config, weights, plain=False):
    """(name, function): transformers' model, or `dense` where that is not installed or `plain`.

    The function takes a sequence [T] and the experts that its tokens go to [layers, T, k] to the logits [T, vocabulary], and to the
    experts that it would have chosen itself [layers, T, k]: of two nearly equal scores rounding decides, and that changes the logits.
    """
    try:
        from transformers import Dots1Config, Dots1ForCausalLM
    except ImportError:
        plain = True
    if plain:
        return "dense PyTorch", lambda ids, experts: dense(config, weights, ids, experts)
    c = config
    sizes = dict(vocab_size=c.vocabulary, hidden_size=c.hidden, moe_intermediate_size=c.inner, head_dim=c.head_size)
    sizes.update(num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads)
    sizes.update(n_routed_experts=c.experts, num_experts_per_tok=c.top_k, n_group=c.groups, topk_group=c.top_groups)
    sizes.update(n_shared_experts=1, first_k_dense_replace=0, norm_topk_prob=True, routed_scaling_factor=c.scaling)
    sizes.update(rms_norm_eps=c.epsilon, rope_parameters={"rope_type": "default", "rope_theta": c.theta})
    model = Dots1ForCausalLM(Dots1Config(**sizes, tie_word_embeddings=False, sliding_window=None)).float().eval()
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    given, own = [], []

    def follow(gate):
        def hook(experts, arguments):
            x, chosen, _ = arguments
            own.append(chosen)
            chosen = given.pop(0)
            scores = F.linear(x.float(), gate.weight.float()).sigmoid()
            return x, chosen, F.normalize(scores.gather(1, chosen), p=1, dim=1) * c.scaling

        return hook

    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(follow(layer.mlp.gate))

    def logits_of(ids, experts):
        given[:], own[:] = experts.long(), []
        return model(ids[None]).logits[0], torch.stack(own)

    return "transformers", logits_of


def dense(config, weights, ids, experts):
    """Every expert computes every token, and counts where it is given. The arguments and results of `reference`'s function."""
    c, (cos, sin), own = config, rotation(config, torch.arange(len(ids))), []

    def turned(x):  # [T, heads, D]
        left, right = x.chunk(2, dim=-1)
        return x * cos[0] + torch.cat((-right, left), dim=-1) * sin[0]

    def norm(x, weight):
        return F.rms_norm(x, weight.shape, weight, c.epsilon)

    w = {name: value.float() for name, value in weights.items()}
    x = w["model.embed_tokens.weight"][ids]
    for at, chosen in zip((f"model.layers.{layer}." for layer in range(c.layers)), experts.long()):
        layer = {name[len(at) :]: value for name, value in w.items() if name.startswith(at)}
        y = norm(x, layer["input_layernorm.weight"])
        q, k, v = ((y @ layer[f"self_attn.{name}_proj.weight"].t()).view(len(x), -1, c.head_size) for name in "qkv")
        q, k = turned(norm(q, layer["self_attn.q_norm.weight"])), turned(norm(k, layer["self_attn.k_norm.weight"]))
        q, k, v = (value.transpose(0, 1) for value in (q, k, v))  # [heads, T, D]
        y = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
        x = x + y.transpose(0, 1).flatten(1) @ layer["self_attn.o_proj.weight"].t()

        y = norm(x, layer["post_attention_layernorm.weight"])
        scores = (y @ layer["mlp.gate.weight"].t()).sigmoid()  # [T, experts]
        ranked = (scores + layer["mlp.gate.e_score_correction_bias"]).view(len(x), c.groups, -1)
        best = ranked.topk(2).values.sum(-1).topk(c.top_groups).indices
        kept = torch.zeros(len(x), c.groups).scatter_(1, best, 1.0)
        own.append((ranked * kept[..., None]).flatten(1).topk(c.top_k).indices)
        weight = F.normalize(scores.gather(1, chosen), p=1, dim=1) * c.scaling
        inner = torch.einsum("th,eih->tei", y, layer["mlp.experts.gate_up_proj"])
        inner = F.silu(inner[..., : c.inner]) * inner[..., c.inner :]
        every = torch.zeros_like(scores).scatter_(1, chosen, weight)
        x = x + torch.einsum("te,tei,ehi->th", every, inner, layer["mlp.experts.down_proj"])
        gate, up, down = (layer[f"mlp.shared_experts.{name}_proj.weight"].t() for name in ("gate", "up", "down"))
        x = x + (F.silu(y @ gate) * (y @ up)) @ down
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].t(), torch.stack(own)


class Step(NamedTuple):
    """What a pass is about. GE takes `ends` and `lengths` as tensors on the device, the others as lists on the host."""

    ids: torch.Tensor  # [T]
    cos: torch.Tensor  # [1, T, 1, D]
    sin: torch.Tensor
    slots: torch.Tensor  # [T, 1] int32: where in the cache the tokens' keys and values go
    table: torch.Tensor  # [B, 1] int32: the pages of a sequence
    ends: torch.Tensor | list  # [B]: where each sequence ends among the T tokens
    lengths: torch.Tensor | list  # [B]: tokens of each sequence, those in the cache among them
    prefill: bool


class Sequences:
    """A rank's sequences, of given tokens, so that every mode computes the same. A sequence has a page of the cache."""

    def __init__(self, config, rank, steps):
        self.config, self.steps, self.prompts = config, steps, [9, 4 + rank]
        generator = torch.Generator().manual_seed(rank + 8)
        self.ids = [torch.randint(config.vocabulary, (length + steps,), generator=generator) for length in self.prompts]

    def step(self, number, mode):
        """The prefill, which is number 0, or a step of decoding."""
        spans = [(prompt + number - 1 if number else 0, prompt + number) for prompt in self.prompts]
        positions = torch.cat([torch.arange(first, last) for first, last in spans])
        slots = torch.cat([torch.arange(first, last) + page * PAGE for page, (first, last) in enumerate(spans)])
        ends = torch.tensor([last - first for first, last in spans]).cumsum(0)
        lengths = torch.tensor([last for _, last in spans])
        on_device = mode == "ge" and number > 0
        return Step(
            torch.cat([ids[first:last] for ids, (first, last) in zip(self.ids, spans)]).npu(),
            *(value.bfloat16().npu() for value in rotation(self.config, positions)),
            slots[:, None].int().npu(),
            torch.arange(len(spans), dtype=torch.int32)[:, None].npu(),
            *(value.npu() if on_device else value.tolist() for value in (ends, lengths)),
            prefill=number == 0,
        )
