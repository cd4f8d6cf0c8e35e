"""`npu_chunk_gated_delta_rule(query, key, value, *, beta, initial_state, actual_seq_lengths, scale, g)`: the delta rule over prompts.

    per token, head by head:  S = S * exp(g)    u = beta * (value - S @ key)    S = S + u key^T    out = S @ (query * scale)

    query, key [T, Nk, Dk]   value [T, Nv, Dv] bfloat16, Nv a multiple of Nk   beta [T, Nv] bfloat16   g [T, Nv] float32 (0)
    initial_state [B, Nv, Dv, Dk] bfloat16 (float32 on Ascend 950)     actual_seq_lengths [B] int32     scale (1)
    -> out [T, Nv, Dv] bfloat16, final_state like initial_state

beta, initial_state and actual_seq_lengths must be given, as the page says. Computed in chunks of 64 tokens, whose u are the solution of a
triangular system; all in float32, rounded once. torchair refuses the operator in GE graphs.

Source: the operator's page in the torch_npu documentation; torch_npu's fake implementation (shapes).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moe_graph.operators.attention.recurrent_gated_delta_rule import sequences
from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu

_check = Checks("npu_chunk_gated_delta_rule")
CHUNK = 64


def chunk_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    beta: Tensor | None = None,
    initial_state: Tensor | None = None,
    actual_seq_lengths: Tensor | None = None,
    scale: float | None = None,
    g: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out and final_state, as the module's document says. Raises ValueError on arguments that it excludes."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check.dtype(name, tensor, (torch.bfloat16,))
    if beta is None or initial_state is None:
        _check.refuse("beta and initial_state", "given", None)
    _check.dtype("initial_state", initial_state, (torch.bfloat16, torch.float32))
    packed = sequences(_check, query, key, value, initial_state, {"beta": beta, "g": g}, actual_seq_lengths)
    if len(initial_state) != len(packed.lengths):
        _check.refuse("initial_state", f"of {len(packed.lengths)} sequences", f"shape {tuple(initial_state.shape)}")
    tokens, heads, _ = value.shape
    valid = (torch.arange(packed.widest) < packed.lengths[:, None])[:, None, :, None]

    def padded(x: Tensor) -> Tensor:
        """[T, N, D] as [B, Nv, chunks, CHUNK, D]. A token with beta and g of 0 changes nothing."""
        x = x.float().transpose(0, 1).repeat_interleave(heads // x.shape[1], 0)
        x = packed.pad(x).masked_fill(~valid, 0)
        return functional.pad(x, (0, 0, 0, -packed.widest % CHUNK)).unflatten(2, (-1, CHUNK))

    decay = torch.zeros(tokens, heads) if g is None else g
    queries, keys, values = padded(query) * (1.0 if scale is None else scale), padded(key), padded(value)
    strength, decays = padded(beta.unsqueeze(-1)), padded(decay.unsqueeze(-1)).cumsum(-2)
    state, outputs = initial_state.float(), []
    for chunk in zip(*(x.unbind(2) for x in (queries, keys, values, strength, decays))):
        out, state = _chunk(state, *chunk)
        outputs.append(out)
    out = torch.cat(outputs, 2)[:, :, : packed.widest] if outputs else values.flatten(2, 3)
    return packed.unpad(out).transpose(0, 1).contiguous().to(value.dtype), state.to(initial_state.dtype)


def _chunk(
    state: Tensor, query: Tensor, key: Tensor, value: Tensor, beta: Tensor, decay: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs of a chunk [B, N, C, Dv] and the state after it. `decay` [B, N, C, 1]: the running sum of g.

    u_t = beta_t (v_t - exp(d_t) S k_t - sum over j < t of exp(d_t - d_j) (k_j @ k_t) u_j), a lower triangular system.
    """
    lower = torch.ones(key.shape[2], key.shape[2], dtype=torch.bool).tril()
    fade = (decay - decay.transpose(2, 3)).masked_fill(~lower, -torch.inf).exp()  # exp(d_t - d_j), j <= t
    system = beta * fade * (key @ key.transpose(2, 3))
    right = beta * (value - decay.exp() * (key @ state.transpose(2, 3)))
    update = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    out = decay.exp() * (query @ state.transpose(2, 3)) + (fade * (query @ key.transpose(2, 3))) @ update
    last = decay[:, :, -1:]
    state = last.exp() * state + ((last - decay).exp() * update).transpose(2, 3) @ key
    return out, state


OPERATOR = of_torch_npu("npu_chunk_gated_delta_rule", chunk_gated_delta_rule)
