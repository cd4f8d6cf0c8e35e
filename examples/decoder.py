"""A decoder of DeepSeek-V3's size, to be planned: latent attention over a paged cache, and 256 experts on as many ranks as there are.

    python -m moe_graph plan examples/decoder.py:decode --world 128 --rank 0 --html decode.html
    python -m moe_graph plan examples/decoder.py:prefill --world 128 --rank 0 --memory 64GiB

No weight is made and no other rank is started: the graph needs shapes only. `decode` and `prefill` give a module and the arguments of
its call; a YAML file of `--config` may change any field of `Config`.

Symbols: B requests of this rank, S tokens of a request, T tokens of the call, H hidden, N heads, E experts of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401  its operators
from torch import nn

npu = torch.ops.npu


@dataclass(frozen=True)
class Config:
    layers: int = 61
    dense_layers: int = 3
    hidden: int = 7168
    dense_inner: int = 18432
    vocabulary: int = 129280
    heads: int = 128
    query_rank: int = 1536
    latent: int = 512
    rope: int = 64
    head: int = 128  # of queries and keys without their rotary part, and of values
    experts: int = 256
    top_k: int = 8
    inner: int = 2048
    groups: int = 8
    top_groups: int = 4
    block: int = 128  # tokens of a page of the cache
    requests: int = 32
    length: int = 4096  # tokens of the cache that a request may take
    prompt: int = 1024  # tokens of the call, of prefill
    capacity: float = 1.25  # of an expert in prefill, times its even share
    dtype: torch.dtype = torch.bfloat16


def weight(config, *shape, dtype=None):
    return nn.Parameter(torch.empty(*shape, dtype=dtype or config.dtype), requires_grad=False)


class Norm(nn.Module):
    def __init__(self, config, size):
        super().__init__()
        self.gamma = weight(config, size)

    def forward(self, x, residual=None):
        """The norm, and x with the residual added."""
        if residual is None:
            return npu.npu_rms_norm(x, self.gamma, 1e-6)[0], x
        y, _, x = npu.npu_add_rms_norm(residual, x, self.gamma, 1e-6)
        return y, x


class Attention(nn.Module):
    """Latent attention. x [T, H] -> [T, H]"""

    def __init__(self, config):
        super().__init__()
        self.config = config
        size, heads = config.head + config.rope, config.heads
        self.query_down, self.query_up = (
            weight(config, config.hidden, config.query_rank),
            weight(config, config.query_rank, heads * size),
        )
        self.latent_down = weight(config, config.hidden, config.latent + config.rope)
        self.key_up, self.value_up = (
            weight(config, heads, config.head, config.latent),
            weight(config, heads, config.latent, config.head),
        )
        self.query_norm, self.latent_norm = weight(config, config.query_rank), weight(config, config.latent)
        self.out = weight(config, heads * config.head, config.hidden)
        pages = config.requests * -(-config.length // config.block)
        self.register_buffer("latents", torch.empty(pages, config.block, 1, config.latent, dtype=config.dtype))
        self.register_buffer("ropes", torch.empty(pages, config.block, 1, config.rope, dtype=config.dtype))
        self.scale = size**-0.5

    def forward(self, x, step):
        return (self.prompt if step.is_prompt else self.token)(x, step) @ self.out

    def token(self, x, step):
        """One token of each request, in the space of the latents: the cache is read as it is."""
        config = self.config
        query, query_rope, _, _, _ = npu.npu_mla_prolog_v3(
            x, self.query_down, self.query_up, self.key_up, self.latent_down, self.query_norm, self.latent_norm,
            step.sin, step.cos, self.latents, self.ropes, cache_index=step.slots, cache_mode="PA_BSND",
            rmsnorm_epsilon_cq=1e-6, rmsnorm_epsilon_ckv=1e-6,
        )  # fmt: skip
        pages, block = self.latents.shape[:2]
        latents, ropes = self.latents.view(pages, block, config.latent), self.ropes.view(pages, block, config.rope)
        y, _ = npu.npu_fused_infer_attention_score_v2(
            query, latents, latents, query_rope=query_rope, key_rope=ropes, actual_seq_qlen=step.queries,
            actual_seq_kvlen=step.lengths, block_table=step.pages, block_size=config.block, num_query_heads=config.heads,
            num_key_value_heads=1, softmax_scale=self.scale, input_layout="TND_NTD",
        )  # fmt: skip
        y = npu.npu_transpose_batchmatmul(y, self.value_up, perm_x1=(0, 1, 2), perm_x2=(0, 1, 2), perm_y=(1, 0, 2))
        return y.reshape(len(x), -1)

    def prompt(self, x, step):
        """All tokens of the requests, with keys and values of each head."""
        config = self.config
        tokens = len(x)
        query = npu.npu_rms_norm(x @ self.query_down, self.query_norm, 1e-6)[0] @ self.query_up
        query, query_rope = query.view(tokens, config.heads, -1).split([config.head, config.rope], -1)
        cos, sin = step.cos.view(tokens, 1, 1, -1), step.sin.view(tokens, 1, 1, -1)
        query_rope = npu.npu_interleave_rope(query_rope.unsqueeze(2), cos, sin).squeeze(2)
        latent = (x @ self.latent_down).view(tokens, 1, 1, -1)
        _, _, rope, latent = npu.npu_kv_rmsnorm_rope_cache(
            latent,
            self.latent_norm,
            cos,
            sin,
            step.slots,
            self.ropes,
            self.latents,
            epsilon=1e-6,
            cache_mode="PA_BNSD",
            is_output_kv=True,
        )
        latent = latent.view(1, tokens, -1)
        key, value = latent @ self.key_up.transpose(1, 2), latent @ self.value_up  # [N, T, head]
        y, _ = npu.npu_fused_infer_attention_score(
            query.transpose(0, 1).contiguous(), key, value, query_rope=query_rope.transpose(0, 1).contiguous(),
            key_rope=rope.view(1, tokens, -1).repeat(config.heads, 1, 1), num_heads=config.heads, num_key_value_heads=config.heads,
            input_layout="NTD_TND", atten_mask=step.mask, sparse_mode=3, actual_seq_lengths=step.lengths,
            actual_seq_lengths_kv=step.lengths, scale=self.scale, next_tokens=0,
        )  # fmt: skip
        return y.reshape(tokens, -1)


class Mlp(nn.Module):
    def __init__(self, config, inner):
        super().__init__()
        self.up, self.down = weight(config, config.hidden, 2 * inner), weight(config, inner, config.hidden)

    def forward(self, x, step=None):
        return npu.npu_swiglu(x @ self.up) @ self.down


class Experts(nn.Module):
    """The experts of one rank, and a shared one. x [T, H] -> [T, H]"""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        if config.experts % self.ranks:
            raise ValueError(f"{config.experts} experts do not divide into {self.ranks} ranks")
        self.local = config.experts // self.ranks
        self.gate = weight(config, config.hidden, config.experts, dtype=torch.float32)
        self.bias = weight(config, config.experts, dtype=torch.float32)
        self.up, self.down = (
            weight(config, self.local, config.hidden, 2 * config.inner),
            weight(config, self.local, config.inner, config.hidden),
        )
        self.shared = Mlp(config, config.inner)
        backend = dist.group.WORLD._get_backend(torch.device("npu"))
        self.group = backend.get_hccl_comm_name(self.rank)

    def forward(self, x, step):
        config = self.config
        scores, experts, _ = npu.npu_moe_gating_top_k(
            x.float() @ self.gate, config.top_k, bias=self.bias, k_group=config.top_groups, group_count=config.groups,
            group_select_mode=1, norm_type=1, routed_scaling_factor=2.5,
        )  # fmt: skip
        return (self.prompt if step.is_prompt else self.token)(x, scores, experts) + self.shared(x)

    def grouped(self, x, weights, group_list):
        how = dict(group_list=group_list, group_list_type=1, group_type=0, split_item=2)
        return npu.npu_grouped_matmul([x], [weights], **how)[0]

    def token(self, x, scores, experts):
        where = dict(
            group_ep=self.group, ep_world_size=self.ranks, ep_rank_id=self.rank, moe_expert_num=self.config.experts
        )
        sent, _, place, counts, received, received_tp, _ = npu.npu_moe_distribute_dispatch_v2(x, experts, **where)
        y = self.grouped(npu.npu_swiglu(self.grouped(sent, self.up, counts)), self.down, counts)
        return npu.npu_moe_distribute_combine_v2(
            y, experts, place, received, scores, tp_send_counts=received_tp, **where
        )

    def prompt(self, x, scores, experts):
        """Each expert takes as many tokens as it has room for: shapes that no routing changes."""
        config = self.config
        room = -(-int(len(x) * config.top_k * config.capacity) // config.experts)
        copies, row, _, _ = npu.npu_moe_init_routing_v2(
            x, experts, active_num=experts.numel(), expert_capacity=room, expert_num=config.experts, drop_pad_mode=1,
            expert_tokens_num_type=1, expert_tokens_num_flag=False, quant_mode=-1, active_expert_range=[0, config.experts],
        )  # fmt: skip
        received = self.exchanged(copies.view(-1, config.hidden)).view(self.ranks, self.local, room, -1)
        tokens = received.transpose(0, 1).reshape(self.local, -1, config.hidden)
        y = torch.bmm(npu.npu_swiglu(torch.bmm(tokens, self.up)), self.down)
        back = self.exchanged(y.view(self.local, self.ranks, room, -1).transpose(0, 1).reshape(-1, config.hidden))
        return npu.npu_moe_finalize_routing(
            back.view(config.experts, room, -1), None, None, None, scores.to(x.dtype), row, experts, drop_pad_mode=3
        )

    def exchanged(self, x):
        y = torch.empty_like(x)
        dist.all_to_all_single(y, x)
        return y


class Layer(nn.Module):
    def __init__(self, config, dense):
        super().__init__()
        self.before, self.attention, self.after = (
            Norm(config, config.hidden),
            Attention(config),
            Norm(config, config.hidden),
        )
        self.mlp = Mlp(config, config.dense_inner) if dense else Experts(config)

    def forward(self, x, residual, step):
        y, residual = self.before(x, residual)
        y, residual = self.after(self.attention(y, step), residual)
        return self.mlp(y, step), residual


@dataclass
class Step:
    """What a call knows of its requests."""

    is_prompt: bool
    cos: torch.Tensor
    sin: torch.Tensor
    slots: torch.Tensor
    pages: torch.Tensor
    mask: torch.Tensor | None
    queries: list[int]
    lengths: list[int]


class Decoder(nn.Module):
    """tokens [T] -> the logits of the last token of each request [B, vocabulary]"""

    def __init__(self, config, is_prompt):
        super().__init__()
        self.config, self.is_prompt = config, is_prompt
        self.table = weight(config, config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config, number < config.dense_layers) for number in range(config.layers))
        self.norm, self.head = Norm(config, config.hidden), weight(config, config.hidden, config.vocabulary)

    def forward(self, tokens, cos, sin, slots, pages, mask=None):
        requests, length = (1, len(tokens)) if self.is_prompt else (len(tokens), self.config.length)
        queries = [len(tokens)] if self.is_prompt else list(range(1, requests + 1))
        step = Step(self.is_prompt, cos, sin, slots, pages, mask, queries, [length] * requests)
        x, residual = nn.functional.embedding(tokens, self.table), None
        for layer in self.layers:
            x, residual = layer(x, residual, step)
        x, _ = self.norm(x, residual)
        return (x[-1:] if self.is_prompt else x) @ self.head


def build(config, is_prompt):
    """The module, and the arguments of one call."""
    if not dist.is_initialized():
        dist.init_process_group("hccl")
    tokens = config.prompt if is_prompt else config.requests
    pages = -(-config.length // config.block)
    arguments = [
        torch.empty(tokens, dtype=torch.int32),
        torch.empty(tokens, config.rope, dtype=config.dtype),
        torch.empty(tokens, config.rope, dtype=config.dtype),
        torch.empty(tokens, dtype=torch.int64),
        torch.empty(config.requests, pages, dtype=torch.int32),
    ]
    if is_prompt:
        arguments.append(torch.empty(2048, 2048, dtype=torch.bool))
    return Decoder(config, is_prompt), arguments


def decode(**changes):
    """One token of each request."""
    return build(Config(**changes), is_prompt=False)


def prefill(**changes):
    """A prompt of one request."""
    return build(Config(**changes), is_prompt=True)
