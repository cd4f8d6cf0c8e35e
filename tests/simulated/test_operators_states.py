"""Operators that write to caches and states: sequences convolved, and rotated keys quantised. Against loops from their documents."""

import pytest
import torch
import torch_npu

from everywhere import check
from versions import need_operator


def convolved(x, weight, states, starts, lines, accepted=None, computed=None, residual=False, pangu=False, blocks=None):
    """Loops over sequences and places, one number at a time. blocks: (first, last, initial, size)."""
    y, count = torch.zeros_like(x), states.shape[1]
    for b in range(len(starts) - 1):
        sequence = [row.clone() for row in x[starts[b] : starts[b + 1]]]
        read = write = lines[b]
        if blocks:
            read, write = lines[b][blocks[2][b]], lines[b][blocks[1][b]]
        if read == -1:
            continue
        offset, past = count - 2, None
        if computed is not None and computed[b] == 0:
            offset, past = 0, [torch.zeros_like(x[0])] * 2
        elif accepted is not None:
            offset = accepted[b] - 1
        past = [states[read, i].clone() for i in range(offset + 2)] if past is None else past
        padded = past + sequence
        for i in range(1, min(count, len(padded)) + 1):
            states[write, count - i] = padded[-i]
        padded = padded[offset:]
        if blocks:
            first, last, _, size = blocks[0][b], blocks[1][b], None, blocks[3]
            rest = (len(sequence) - (size - computed[b] % size)) % size
            end = len(sequence) - rest - (size if rest == 0 else 0)
            for chunk in range(last - first):
                at = end - (last - first - chunk - 1) * size
                for j in range(2):
                    states[lines[b][first + chunk], count - 2 + j] = padded[at + j]
        for i in range(len(sequence)):
            total = sum(weight[k].float() * padded[i + k].float() for k in range(3))
            if pangu and i < 2 - computed[b]:
                total = torch.zeros_like(total)
            y[starts[b] + i] = total + (sequence[i].float() if residual else 0)
    return y, states


CASES = {
    "prefill": dict(count=2, starts=[0, 5, 8], lines=[2, 0], computed=[0, 4]),
    "left alone": dict(count=2, starts=[0, 5, 8], lines=[-1, 1]),
    "speculation": dict(count=5, starts=[0, 3, 6], lines=[1, 2], accepted=[1, 3], residual=True),
    "pangu": dict(count=2, starts=[0, 5, 8], lines=[1, 0], computed=[0, 1], pangu=True),
    "blocks": dict(
        count=2, starts=[0, 9, 15], lines=[[0, 1, 2], [3, 4, 5]], computed=[4, 2], blocks=([1, 0], [2, 1], [0, 0], 4)
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", [1, 2])
def test_fused_causal_conv1d(case, version):
    need_operator("npu_fused_causal_conv1d_v2")
    torch.manual_seed(0)
    given = dict(CASES[case])
    count, starts, lines = given.pop("count"), given.pop("starts"), given.pop("lines")
    x, weight, states = torch.randn(starts[-1], 4).half(), torch.randn(3, 4).half(), torch.randn(6, count, 4).half()
    y, after = convolved(x, weight, states.clone(), starts, lines, **given)
    tensor = {name: torch.tensor(given[name], dtype=torch.int32) for name in ("accepted", "computed") if name in given}
    blocks = [torch.tensor(b, dtype=torch.int32) for b in given["blocks"][:3]] if "blocks" in given else [None] * 3

    def operator(x, weight, states, starts, lines, accepted, computed, first, last, initial):
        name = torch_npu.npu_fused_causal_conv1d if version == 1 else torch.ops.npu.npu_fused_causal_conv1d_v2
        return name(
            x,
            weight,
            states,
            query_start_loc=starts,
            cache_indices=lines,
            num_accepted_tokens=accepted,
            num_computed_tokens=computed,
            block_idx_first_scheduled_token=first,
            block_idx_last_scheduled_token=last,
            initial_state_idx=initial,
            residual_connection=int(given.get("residual", False)),
            block_size=4,
            conv_mode="pangu" if given.get("pangu") else "default",
        )

    args = [x, weight, states, torch.tensor(starts, dtype=torch.int32), torch.tensor(lines, dtype=torch.int32)]
    args += [tensor.get("accepted"), tensor.get("computed"), *blocks]
    if version == 2 and case == "left alone":
        y[:5] = x[:5]  # it keeps what it has
    expected = [y, None, None, after] if version == 1 else [y, None, after]
    modes = ("eager", "static") if case in ("speculation", "blocks") else ("eager",)
    check(operator, args, expected, modes=modes, rtol=2**-10, atol=2**-10)


@pytest.mark.parametrize("kind", ["contiguous", "page"])
@pytest.mark.parametrize("form", ["plain", "dequant", "two dimensions"])
def test_rope_quant_kvcache(kind, form):
    torch.manual_seed(1)
    batch, length, heads, depth = 2, 1 if form == "two dimensions" else 3, 2, 4
    width = (3 + 2 * heads) * depth
    whole = torch.randint(-99, 99, (batch, length, width), dtype=torch.int32)
    weight, token, bias = torch.rand(width) / 20, torch.rand(batch * length), torch.randn(width)
    x = torch.randn(batch, length, width).half()
    cos, sin = torch.randn(batch, length, 1, depth).half(), torch.randn(batch, length, 1, depth).half()
    caches = [torch.randint(-9, 9, (3, 8, heads, depth)).to(torch.int8) for _ in range(2)]
    scales = [torch.rand(heads, depth) / 20 + 0.01 for _ in range(2)]
    offsets = [torch.randn(heads, depth) for _ in range(2)]
    places = torch.tensor([4, 0]) if kind == "contiguous" else torch.randperm(24)[: batch * length]
    indices = places.to(torch.int32)
    after, outputs = [cache.clone() for cache in caches], torch.empty(batch, length, 3 + 2 * heads, depth)
    for b in range(batch):
        for s in range(length):
            row = x[b, s].float()
            if form == "dequant":
                row = whole[b, s].float() * weight * token[b * length + s] + bias
            for head in range(3 + 2 * heads):
                value = row[head * depth : (head + 1) * depth]
                if head < 3 + heads:
                    partner = torch.stack([-value[2], -value[3], value[0], value[1]])
                    value = value * cos[b, s, 0].float() + partner * sin[b, s, 0].float()
                outputs[b, s, head] = value
                if head >= 3:
                    which, n = divmod(head - 3, heads)
                    steps = (value / scales[which][n] + offsets[which][n]).round().clamp(-128, 127).to(torch.int8)
                    if kind == "contiguous":
                        after[which][b, int(places[b]) + s, n] = steps
                    else:
                        after[which].view(24, heads, depth)[places[b * length + s], n] = steps
    q, k, v = (part.half() for part in outputs.split([3, heads, heads], 2))
    sizes = [3 * depth, heads * depth, heads * depth]

    def plain(x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v, offset_k, offset_v):
        return torch.ops.npu.npu_rope_quant_kvcache(
            x,
            cos,
            sin,
            k_cache,
            v_cache,
            indices,
            scale_k,
            scale_v,
            sizes,
            offset_k=offset_k,
            offset_v=offset_v,
            kv_output=True,
            cache_mode=kind,
        )

    def dequant(x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v, offset_k, offset_v, weight, token, bias):
        return torch.ops.npu.npu_dequant_rope_quant_kvcache(
            x,
            cos,
            sin,
            k_cache,
            v_cache,
            indices,
            scale_k,
            scale_v,
            sizes,
            offset_k=offset_k,
            offset_v=offset_v,
            weight_scale=weight,
            activation_scale=token,
            bias=bias,
            kv_output=True,
            cache_mode=kind,
        )

    args = [whole if form == "dequant" else x, cos, sin, *caches, indices, *scales, *offsets]
    args += [weight, token, bias] if form == "dequant" else []
    if form == "two dimensions":
        args[:3] = [t.squeeze(1) for t in args[:3]]
        q, k, v = (part.squeeze(1) for part in (q, k, v))
    function = dequant if form == "dequant" else plain
    modes = ("eager", "static") if kind == "contiguous" and form != "two dimensions" else ("eager",)
    check(function, args, [q, k, v, *after], modes=modes, rtol=2**-10, atol=2**-10)
    if kind == "page" and form == "plain":  # torchair leaves cache_mode out of the node
        with pytest.raises(Exception, match="indices must be of 2 places with cache_mode 'contiguous'"):
            check(function, args, [], modes=("static",))
