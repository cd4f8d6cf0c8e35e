"""npu_fusion_attention, its v2 and v3 and their gradients on CPU tensors: against plain loops, and against torch's autograd in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import sequences
from moe_graph.operators.attention.dropout import dropout_gen_mask
from moe_graph.operators.attention.fusion_attention import fusion_attention, fusion_attention_grad
from moe_graph.operators.attention.fusion_attention_v2 import fusion_attention_grad_v2, fusion_attention_v2
from moe_graph.operators.attention.fusion_attention_v3 import fusion_attention_grad_v3, fusion_attention_v3

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])
INFO = torch.finfo(torch.float32)
SCALE = 0.4


def lay(x, layout, dtype):
    """Sequences in the layout; SBH is BSH with its first two axes changed."""
    if layout == "SBH":
        return sequences.lay_out(x, "BSH", dtype, fill=0).transpose(0, 1).contiguous()
    return sequences.lay_out(x, layout, dtype, fill=0)


def read(tensor, layout, lengths, heads):
    if layout == "SBH":
        return sequences.read(tensor.transpose(0, 1), "BSH", lengths, heads)
    return sequences.read(tensor, layout, lengths, heads)


def sums_of(tensor, packed, by_token, lengths, heads):
    """[N, S] of each sequence, and that the last size holds one number eight times."""
    assert tensor.dtype == torch.float32 and tensor.shape[-1] == 8 and (tensor == tensor[..., :1]).all()
    tensor = tensor[..., 0].double()
    if not packed:
        return [tensor[b, :, :length].numpy() for b, length in enumerate(lengths)]
    if by_token:
        return [x.T.numpy() for x in tensor[: sum(lengths)].split(list(lengths))]
    parts = tensor.flatten()[: sum(lengths) * heads].split([length * heads for length in lengths])
    return [x.view(heads, length).numpy() for x, length in zip(parts, lengths)]


@settings(max_examples=70, deadline=None)
@given(
    st.data(),
    st.sampled_from(["BSH", "SBH", "BSND", "BNSD", "TND"]),
    DTYPES,
    st.sampled_from([None, 0, 1, 2, 3, 4, 6]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_forward(data, layout, dtype, mode, by_token, with_sink, seed):
    batch, key_heads, groups = (data.draw(st.integers(1, 2)) for _ in "bkg")
    heads, packed = key_heads * groups, layout == "TND"
    q_lengths, k_lengths = (data.draw(st.lists(st.integers(1, 4), min_size=batch, max_size=batch)) for _ in "qk")
    if not packed:
        q_lengths, k_lengths = q_lengths[:1] * batch, k_lengths[:1] * batch
    pre, following = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    queries = sequences.make(q_lengths, heads, 4, dtype, seed)
    keys, values = (sequences.make(k_lengths, key_heads, 4, dtype, seed + i) for i in (1, 2))
    rng, sink = np.random.default_rng(seed), torch.linspace(-1, 1, heads) if with_sink else None
    hidden = rng.random((max(q_lengths), max(k_lengths))) < 0.3
    prefix = [int(rng.integers(0, length + 1)) for length in k_lengths]
    mask = {
        None: None,
        0: torch.tensor(hidden),
        1: torch.tensor(hidden),
        6: torch.ones(3072, 2048, dtype=torch.bool),
    }.get(mode, sequences.triangle())

    def sees(b, i, j):
        shift = k_lengths[b] - q_lengths[b]
        return {
            None: True,
            0: -pre <= j - i <= following and not hidden[i, j],
            1: not hidden[i, j],
            2: j <= i,
            3: j <= i + shift,
            4: -pre <= j - i - shift <= following,
            6: j <= i + shift or j < prefix[b],
        }[mode]

    output, largest, total, empty, drawn, offset, count = fusion_attention(
        lay(queries, layout, dtype),
        lay(keys, layout, dtype),
        lay(values, layout, dtype),
        heads,
        layout,
        atten_mask=mask,
        scale=SCALE,
        pre_tockens=pre,
        next_tockens=following,
        prefix=prefix if mode == 6 else None,
        actual_seq_qlen=sequences.ends(q_lengths) if packed else None,
        actual_seq_kvlen=sequences.ends(k_lengths) if packed else None,
        sparse_mode=mode or 0,
        softmax_layout="TND" if packed and by_token else "",
        sink=sink,
    )
    expected, lse = sequences.attention(queries, keys, values, SCALE, sees, sink=sink)
    assert output.dtype == dtype and empty.shape == (0,) and (drawn, offset) == (0, 0)
    assert count == heads * sum(q * k for q, k in zip(q_lengths, k_lengths))
    sequences.assert_close(read(output, layout, q_lengths, heads), expected, dtype)
    maxima, totals = (sums_of(x, packed, by_token, q_lengths, heads) for x in (largest, total))
    for maximum, summed, wanted in zip(maxima, totals, lse):
        dead = np.isinf(wanted)
        assert (maximum[dead] == INFO.min).all() and (summed[dead] == INFO.max).all()
        np.testing.assert_allclose((maximum + np.log(summed))[~dead], wanted[~dead], rtol=1e-5, atol=1e-5)


def by_autograd(leaves, dy, heads, mask, pse_type, given):
    """Gradients of attention of [B, N, S, D] in float64; rows without a key give 0."""
    q, k, v = leaves["query"], leaves["key"], leaves["value"]
    if "query_rope" in leaves:
        q, k = torch.cat([q, leaves["query_rope"]], -1), torch.cat([k, leaves["key_rope"]], -1)
    group = heads // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    pse = leaves.get("pse", 0)
    scores = SCALE * (q @ k.mT + pse) if pse_type == 1 else SCALE * (q @ k.mT) + pse
    scores = scores.masked_fill(mask, -torch.inf)
    if "sink" in leaves:
        scores = torch.cat([scores, leaves["sink"].view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
        output = scores.softmax(-1)[..., :-1] @ v
    else:
        output = torch.where(
            mask.all(-1, keepdim=True), 0.0, scores.masked_fill(mask.all(-1, keepdim=True), 0).softmax(-1) @ v
        )
    return dict(zip(leaves, torch.autograd.grad(output, list(leaves.values()), dy)))


@settings(max_examples=40, deadline=None)
@given(
    st.data(),
    st.sampled_from(["BSH", "SBH", "BSND", "BNSD"]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_gradients(data, layout, version, with_pse, with_sink, seed):
    torch.manual_seed(seed)
    batch, key_heads, groups, rows, count = (data.draw(st.integers(1, 3)) for _ in range(5))
    heads, pse_type = key_heads * groups, data.draw(st.integers(0, 1)) if version == 2 else 1
    shapes = {"query": (heads, rows, 4), "key": (key_heads, count, 4), "value": (key_heads, count, 4)}
    if version == 2 and data.draw(st.booleans()):
        shapes |= {"query_rope": (heads, rows, 2), "key_rope": (key_heads, count, 2)}
    leaves = {name: torch.randn(batch, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    if with_pse:
        leaves["pse"] = torch.randn(1, heads, rows, count, dtype=torch.float64)
    if with_sink:
        leaves["sink"] = torch.randn(heads, dtype=torch.float64)
    leaves = {name: x.float().double().requires_grad_() for name, x in leaves.items()}
    mask, dy = torch.rand(batch, 1, rows, count) < 0.3, torch.randn(batch, heads, rows, 4)

    def laid(x):
        x = x.detach().float()
        x = {"BNSD": x, "BSND": x.transpose(1, 2), "BSH": x.transpose(1, 2).flatten(2)}.get(
            layout, x.permute(2, 0, 1, 3).flatten(2)
        )
        return x.contiguous()

    tensors = {name: x.detach().float() if name in ("pse", "sink") else laid(x) for name, x in leaves.items()}
    more = {"atten_mask": mask, "sparse_mode": 1}
    forward, backward = {
        1: (fusion_attention, fusion_attention_grad),
        2: (fusion_attention_v2, fusion_attention_grad_v2),
        3: (fusion_attention_v3, fusion_attention_grad_v3),
    }[version]
    if version == 2:
        more["pse_type"] = pse_type
    first = [tensors.pop(name) for name in ("query", "key", "value")]
    output, largest, total, *_ = forward(*first, heads, layout, **tensors, **more, scale=SCALE)
    found = backward(
        *first,
        laid(dy),
        heads,
        layout,
        **tensors,
        **more,
        scale_value=SCALE,
        softmax_max=largest,
        softmax_sum=total,
        attention_in=output,
    )
    names = {2: ("query", "key", "value", "pse", "query_rope", "key_rope", "sink")}.get(
        version, ("query", "key", "value", "pse", "sink")
    )
    expected = by_autograd(leaves, dy.double(), heads, mask, pse_type, more)
    for name, gradient in zip(names, found):
        if name not in leaves:
            assert gradient is None or gradient.numel() == 0
            continue
        wanted = expected[name] if name in ("pse", "sink") else laid(expected[name])
        torch.testing.assert_close(gradient, wanted.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softmax_layout", ["", "TND"])
def test_packed_gradients_are_those_of_each_sequence(softmax_layout):
    q_lengths, k_lengths = [2, 1, 3], [3, 4, 2]
    queries, dys = (sequences.make(q_lengths, 4, 4, torch.float32, seed) for seed in (0, 3))
    keys, values = (sequences.make(k_lengths, 2, 4, torch.float32, seed) for seed in (1, 2))
    packed = [sequences.lay_out(x, "TND", torch.float32) for x in (queries, keys, values, dys)]
    more = {"sparse_mode": 3, "atten_mask": sequences.triangle()}
    where = {"actual_seq_qlen": [*sequences.ends(q_lengths), 0], "actual_seq_kvlen": [*sequences.ends(k_lengths), 0]}
    where["softmax_layout"] = softmax_layout
    output, largest, total, *_ = fusion_attention(*packed[:3], 4, "TND", **more, **where)
    results = {"softmax_max": largest, "softmax_sum": total, "attention_in": output}
    found = fusion_attention_grad(*packed[:3], packed[3], 4, "TND", **results, **more, **where)
    alone = []
    for one in zip(queries, keys, values, dys):
        q, k, v, dy = (torch.tensor(x[None]).float() for x in one)
        output, largest, total, *_ = fusion_attention(q, k, v, 4, "BNSD", **more)
        results = {"softmax_max": largest, "softmax_sum": total, "attention_in": output}
        alone.append(
            [x[0].transpose(0, 1) for x in fusion_attention_grad(q, k, v, dy, 4, "BNSD", **results, **more)[:3]]
        )
    for gradient, parts in zip(found, zip(*alone)):
        torch.testing.assert_close(gradient, torch.cat(parts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_dropout(packed):
    q_lengths, k_lengths, keep = ([2, 3], [4, 2], 0.7) if packed else ([3, 3], [4, 4], 0.7)
    layout, dtype = "TND" if packed else "BNSD", torch.float32
    queries, dys = (sequences.make(q_lengths, 2, 4, dtype, seed) for seed in (0, 3))
    keys, values = (sequences.make(k_lengths, 2, 4, dtype, seed) for seed in (1, 2))
    count = 2 * sum(q * k for q, k in zip(q_lengths, k_lengths))
    mask = dropout_gen_mask(torch.zeros(1), [count], 1 - keep, 5, 8)
    assert mask.dtype == torch.uint8 and len(mask) == -(-count // 128) * 16
    bits = np.unpackbits(mask.numpy(), count=count, bitorder="little")
    q, k, v, dy = (sequences.lay_out(x, layout, dtype) for x in (queries, keys, values, dys))
    where = {}
    if packed:
        where = {"actual_seq_qlen": sequences.ends(q_lengths), "actual_seq_kvlen": sequences.ends(k_lengths)}
    output, largest, total, _, seed, offset, numels = fusion_attention(
        q, k, v, 2, layout, keep_prob=keep, dropout_mask=mask, seed=5, offset=8, **where
    )
    again = fusion_attention(q, k, v, 2, layout, keep_prob=keep, seed=5, offset=8, **where)[0]
    assert (seed, offset, numels) == (5, 8, count) and torch.equal(output, again)
    results = {"softmax_max": largest, "softmax_sum": total, "attention_in": output}
    drawn = {"keep_prob": keep, "seed": seed, "offset": offset, "numels": numels}
    found = fusion_attention_grad(q, k, v, dy, 2, layout, **results, **drawn, **where)[:3]
    start, outputs, gradients = 0, [], []
    for one in zip(queries, keys, values, dys):
        a, b, c, grad = (torch.tensor(x, requires_grad=True) for x in one)
        shape = (2, a.shape[1], b.shape[1])
        chosen = torch.tensor(bits[start : (start := start + int(np.prod(shape)))].reshape(shape))
        out = ((a @ b.mT).softmax(-1) * chosen / keep) @ c
        outputs.append(out.detach().numpy())
        gradients.append([x.numpy() for x in torch.autograd.grad(out, (a, b, c), grad)])
    sequences.assert_close(sequences.read(output, layout, q_lengths, 2), outputs, torch.float32)
    for gradient, wanted, lengths in zip(found, zip(*gradients), (q_lengths, k_lengths, k_lengths)):
        sequences.assert_close(sequences.read(gradient, layout, lengths, 2), wanted, torch.float32)


def test_what_is_excluded_is_named():
    x = torch.zeros(1, 2, 3, 4)
    for changed, match in (
        ({"keep_prob": 0.0}, "keep_prob must be above 0"),
        (
            {"keep_prob": 0.5, "dropout_mask": torch.zeros(2, dtype=torch.uint8)},
            "dropout_mask must be of 18 bits at least",
        ),
        ({"sparse_mode": 7}, r"sparse_mode must be 0 to 6.*7 and 8"),
        ({"pse": torch.zeros(1, 2, 1024, 3)}, "pse must be of shape"),
        ({"sparse_mode": 3, "atten_mask": x[0, 0, :, :3] > 0}, "atten_mask must be the upper triangle"),
        ({"sparse_mode": 5, "atten_mask": x[0, 0, :, :3] > 0}, "prefix must be given in sparse_mode 5"),
        ({"padding_mask": x}, "padding_mask must be None"),
        ({"softmax_layout": "TND"}, "softmax_layout must be one of ''"),
        ({"sink": torch.zeros(3)}, r"sink must be of shape \[2\]"),
    ):
        with pytest.raises(ValueError, match="npu_fusion_attention: " + match):
            fusion_attention(x, x, x, 2, "BNSD", **changed)
    with pytest.raises(ValueError, match="pse_type must be 0 or 1"):
        fusion_attention_v2(x, x, x, 2, "BNSD", pse_type=2)
    with pytest.raises(ValueError, match="actual_seq_qlen must be given in layout TND"):
        fusion_attention(x[0], x[0], x[0], 3, "TND")
