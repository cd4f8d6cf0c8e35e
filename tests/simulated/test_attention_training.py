"""npu_fusion_attention on NPU tensors: torch_npu's own autograd over it, and the graphs that torchair lowers it to."""

from __future__ import annotations

import pytest
import torch
import torch_npu

from attention import sequences
from attention.device import assert_equal, assert_everywhere, moved
from moe_graph.engine import kernels, registry
from moe_graph.operators.attention.fusion_attention import fusion_attention, fusion_attention_grad

assert kernels  # importing them registers them
GENERATOR = torch.Generator().manual_seed(0)
X = [torch.randn(2, 2, 3, 4, generator=GENERATOR) for _ in range(4)]


def arguments(layout="BNSD"):
    q, k, v, _ = (x if layout == "BNSD" else x.transpose(1, 2).flatten(2) for x in X)
    return {"query": q, "key": k, "value": v, "head_num": 2, "input_layout": layout, "scale": 0.5, "sparse_mode": 2}


@pytest.mark.parametrize("layout", ["BSH", "BNSD"])
def test_forward_and_gradient_operators(layout):
    given = {**arguments(layout), "atten_mask": sequences.triangle()}
    output, largest, total, _ = assert_everywhere(
        lambda **more: torch.ops.npu.npu_fusion_attention(**more)[:4],
        lambda **more: fusion_attention(**more)[:4],
        given,
    )
    given["dy"] = X[3] if layout == "BNSD" else X[3].transpose(1, 2).flatten(2)
    given["scale_value"] = given.pop("scale")
    given.update(softmax_max=largest, softmax_sum=total, attention_in=output)
    expected = fusion_attention_grad(**given)[:3]
    assert_equal(torch.ops.npu.npu_fusion_attention_grad(**moved(given, "npu"))[:3], expected)
    # torchair's converter gives four results where torch_npu's schema has five, and refuses itself: the kernel of its node alone.
    tensors = [given[name] for name in ("query", "key", "value", "dy")] + [None] * 3 + [given["atten_mask"]]
    tensors += [largest, total, None, output]
    attributes = {"head_num": 2, "input_layout": layout, "scale_value": 0.5, "sparse_mode": 2}
    *found, of_pse = registry.get("FlashAttentionScoreGrad").function(*tensors, **attributes)
    assert of_pse.numel() == 0
    for x, y in zip(found, expected):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["npu_fusion_attention", "npu_fusion_attention_v2", "npu_fusion_attention_v3"])
def test_torch_npus_autograd_reaches_the_gradient_operator(name):
    found = []
    mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
    for device in ("cpu", "npu"):
        leaves = [x.clone().to(device).requires_grad_() for x in (*X[:3], torch.zeros(1, 2, 3, 3) + 0.1)]
        query, key, value, bias = leaves
        if device == "cpu":
            scores = 0.5 * (query @ key.mT + bias)
            output = scores.masked_fill(mask, -torch.inf).softmax(-1) @ value
        else:
            operator = getattr(torch_npu, name)
            output = operator(query, key, value, 2, "BNSD", pse=bias, atten_mask=mask.npu(), scale=0.5, sparse_mode=1)[
                0
            ]
        output.backward(X[3].to(device))
        found.append([output.detach(), *(x.grad for x in leaves)])
    for cpu, npu in zip(*found):
        assert npu.is_npu
        torch.testing.assert_close(npu.cpu(), cpu, rtol=1e-4, atol=1e-5)


def test_packed_sequences_with_lengths_on_the_host():
    q, k, v = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in X[:3])
    ends = torch.tensor([3, 6])
    found = torch_npu.npu_fusion_attention_v3(
        q.npu(), k.npu(), v.npu(), 2, "TND", scale=0.5, actual_seq_qlen=ends, actual_seq_kvlen=ends
    )
    expected = fusion_attention(q, k, v, 2, "TND", scale=0.5, actual_seq_qlen=[3, 6], actual_seq_kvlen=[3, 6])
    assert_equal(found[:4], expected[:4])
    assert all(x.device.type == "cpu" and x.shape == (1,) for x in found[4:])
    again = torch_npu.npu_fusion_attention(
        *moved([q, k, v], "npu"), 2, "TND", scale=0.5, actual_seq_qlen=(3, 6), actual_seq_kvlen=(3, 6)
    )
    assert_equal(again[:4], expected[:4])
    assert again[4:] == expected[4:] == (0, 0, 2 * 2 * 9)


@pytest.mark.parametrize("name", ["npu_fusion_attention", "npu_fusion_attention_v2", "npu_fusion_attention_v3"])
def test_dropout_is_the_generators_and_the_gradients_too(name):
    query, key, value = (x.npu().requires_grad_() for x in X[:3])

    def run():
        torch.npu.manual_seed(7)
        output, *rest = getattr(torch_npu, name)(query, key, value, 2, "BNSD", keep_prob=0.5)
        return output, *(int(x) for x in rest[3:5])

    output, seed, offset = run()
    mask = torch_npu._npu_dropout_gen_mask(
        query, [2, 2, 3, 3], p=0.5, seed=seed, offset=offset, parallel=True, sync=False
    )
    assert torch.equal(output, run()[0]) and seed == 7
    bits = torch.tensor([byte >> i & 1 for byte in mask.tolist() for i in range(8)][:36]).view(2, 2, 3, 3)
    assert 0 < bits.sum() < 36
    leaves = [x.clone().requires_grad_() for x in X[:3]]
    expected = ((leaves[0] @ leaves[1].mT).softmax(-1) * bits / 0.5) @ leaves[2]
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-4, atol=1e-5)
    output.backward(X[3].npu())
    expected.backward(X[3])
    for npu, cpu in zip((query, key, value), leaves):
        torch.testing.assert_close(npu.grad.cpu(), cpu.grad, rtol=1e-4, atol=1e-5)
