"""`npu_recurrent_gated_delta_rule(query, key, value, state, ...)`: linear attention with a state, a few tokens of each sequence.

    per token, head by head:  S = S * exp(g) * exp(gk)    u = beta * (value - S @ key)    S = S + u key^T    out = S @ (query * scale)

    query, key [T, Nk, Dk]   value [T, Nv, Dv] bfloat16, Nv a multiple of Nk   beta [T, Nv] bfloat16 (1)   g [T, Nv], gk [T, Nv, Dk]
    float32 (0)              state [blocks, Nv, Dv, Dk] bfloat16, changed: after token t state[ssm_state_indices[t]] is its S
    actual_seq_lengths [B] int32 how many tokens each sequence has      ssm_state_indices [T] int32
    num_accepted_tokens [B] int32 (1)   a sequence begins with the state of its token number num_accepted_tokens - 1
    -> out [T, Nv, Dv] bfloat16; tokens of no sequence are 0

`npu_recurrent_gated_delta_rule_functional` leaves state alone and returns a changed copy beside out. scale must be given, as torch_npu
demands, and so must the lengths and indices, without which there is no sequence. The state within a sequence is float32; what is written is
rounded once. The page wants at most 8 tokens a sequence; longer ones are computed.

All first states are read before one is written. Source: the operator's page in the torch_npu documentation; the state that a sequence
begins with: its test in op-plugin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.operators.attention import layouts
from moe_graph.operators.attention.layouts import Packed
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel

_check = Checks("npu_recurrent_gated_delta_rule")


def recurrent_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    *,
    beta: Tensor | None = None,
    scale: float | None = None,
    actual_seq_lengths: Tensor | None = None,
    ssm_state_indices: Tensor | None = None,
    num_accepted_tokens: Tensor | None = None,
    g: Tensor | None = None,
    gk: Tensor | None = None,
) -> Tensor:
    """out, as the module's document says; `state` is changed. Raises ValueError on arguments that it excludes."""
    for name, tensor in (("query", query), ("key", key), ("value", value), ("state", state)):
        _check.dtype(name, tensor, (torch.bfloat16,))
    if scale is None:
        _check.refuse("scale", "given", None)
    packed = sequences(_check, query, key, value, state, {"beta": beta, "g": g}, actual_seq_lengths)
    tokens, heads, _ = value.shape
    if gk is not None and tuple(gk.shape) != (tokens, heads, query.shape[-1]):
        _check.refuse("gk", f"of shape [{tokens}, {heads}, {query.shape[-1]}]", f"shape {tuple(gk.shape)}")
    if ssm_state_indices is None or ssm_state_indices.numel() < tokens:
        _check.refuse(
            "ssm_state_indices",
            f"given for {tokens} tokens",
            None if ssm_state_indices is None else ssm_state_indices.shape,
        )
    slots = ssm_state_indices.flatten()[:tokens].long()
    if bool(((slots < 0) | (slots >= len(state))).any()):
        _check.refuse("ssm_state_indices", f"from 0 to {len(state) - 1}, the blocks of state", slots.tolist())
    accepted = torch.ones_like(packed.lengths) if num_accepted_tokens is None else num_accepted_tokens.long()
    if accepted.shape != packed.lengths.shape or bool(((accepted < 1) | (accepted > packed.lengths)).any()):
        _check.refuse(
            "num_accepted_tokens", f"from 1 to the sequences' lengths {packed.lengths.tolist()}", accepted.tolist()
        )
    decay = value.new_zeros(tokens, heads, 1, dtype=torch.float32) if g is None else g.float().unsqueeze(-1)
    decay = (decay if gk is None else decay + gk.float()).exp()
    of_head = torch.arange(heads) // (heads // query.shape[1])
    queries, keys, values = query.float()[:, of_head] * scale, key.float()[:, of_head], value.float()
    strength = torch.ones(tokens, heads) if beta is None else beta.float()
    starts = packed.lengths.cumsum(0) - packed.lengths
    states = state[slots[starts + accepted - 1]].float()  # [B, Nv, Dv, Dk]
    out = torch.zeros_like(value)
    for step in range(packed.widest):
        active = (packed.lengths > step).nonzero().squeeze(1)
        token = starts[active] + step
        grown = states[active] * decay[token].unsqueeze(-2)
        update = strength[token].unsqueeze(-1) * (values[token] - (grown @ keys[token].unsqueeze(-1)).squeeze(-1))
        grown = grown + update.unsqueeze(-1) * keys[token].unsqueeze(-2)
        states[active] = grown
        state[slots[token]] = grown.to(state.dtype)
        out[token] = (grown @ queries[token].unsqueeze(-1)).squeeze(-1).to(out.dtype)
    return out


def recurrent_gated_delta_rule_functional(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    *,
    beta: Tensor | None = None,
    scale: float | None = None,
    actual_seq_lengths: Tensor | None = None,
    ssm_state_indices: Tensor | None = None,
    num_accepted_tokens: Tensor | None = None,
    g: Tensor | None = None,
    gk: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out and the changed copy of state."""
    changed = state.clone()
    out = recurrent_gated_delta_rule(
        query,
        key,
        value,
        changed,
        beta=beta,
        scale=scale,
        actual_seq_lengths=actual_seq_lengths,
        ssm_state_indices=ssm_state_indices,
        num_accepted_tokens=num_accepted_tokens,
        g=g,
        gk=gk,
    )
    return out, changed


def sequences(
    check: Checks,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    by_token: dict[str, Tensor | None],
    lengths: Tensor | None,
) -> Packed:
    """Where the sequences lie; the checks of shapes that both delta rules share."""
    check.rank("value", value, (3,), "[T, Nv, Dv]")
    check.rank("query", query, (3,), "[T, Nk, Dk]")
    tokens, heads, width = value.shape
    if key.shape != query.shape or query.shape[0] != tokens or heads % query.shape[1]:
        wanted = f"[{tokens}, Nk, Dk] with Nk a divisor of value's {heads} heads"
        check.refuse("query and key", f"alike, {wanted}", f"shapes {tuple(query.shape)} and {tuple(key.shape)}")
    if tuple(state.shape[1:]) != (heads, width, query.shape[2]):
        check.refuse(
            "the state", f"of shape [blocks, {heads}, {width}, {query.shape[2]}]", f"shape {tuple(state.shape)}"
        )
    for name, tensor in by_token.items():
        if tensor is not None and tuple(tensor.shape) != (tokens, heads):
            check.refuse(name, f"of shape [{tokens}, {heads}]", f"shape {tuple(tensor.shape)}")
    if lengths is None:
        check.refuse("actual_seq_lengths", "given: how many tokens each sequence has", None)
    return Packed(check, "actual_seq_lengths", layouts.numbers(lengths.long().cumsum(0)), tokens)


def _ge_recurrent_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    state: Tensor,
    actual_seq_lengths: Tensor,
    ssm_state_indices: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    num_accepted_tokens: Tensor | None = None,
    *,
    scale_value: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """GE RecurrentGatedDeltaRule, which assigns to state. beta is required, as GE defines it."""
    out = recurrent_gated_delta_rule(
        query,
        key,
        value,
        state,
        beta=beta,
        scale=scale_value,
        actual_seq_lengths=actual_seq_lengths,
        ssm_state_indices=ssm_state_indices,
        num_accepted_tokens=num_accepted_tokens,
        g=g,
        gk=gk,
    )
    return out, state


OPERATOR = of_torch_npu(
    "npu_recurrent_gated_delta_rule",
    recurrent_gated_delta_rule,
    ge=[GeKernel("RecurrentGatedDeltaRule", _ge_recurrent_gated_delta_rule, assigns=("state",))],
)
FUNCTIONAL_OPERATOR = of_torch_npu("npu_recurrent_gated_delta_rule_functional", recurrent_gated_delta_rule_functional)
