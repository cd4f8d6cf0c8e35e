"""Native sparse attention on NPU tensors, differentiated by torch_npu's own autograd."""

from __future__ import annotations

import torch
import torch_npu

from attention.device import assert_equal, moved
from moe_graph.operators.attention.nsa_compress import nsa_compress, nsa_compress_grad
from moe_graph.operators.attention.nsa_compress_attention import nsa_compress_attention
from moe_graph.operators.attention.nsa_compress_infer import nsa_compress_infer
from moe_graph.operators.attention.nsa_infer import nsa_compress_attention_infer, nsa_select_attention_infer
from moe_graph.operators.attention.nsa_select_attention import nsa_select_attention, nsa_select_attention_grad

GENERATOR = torch.Generator().manual_seed(0)


def half(*shape):
    return torch.randn(*shape, generator=GENERATOR).half()


def test_compression():
    x, weight = half(7, 2, 4), half(2, 2)
    leaves = [x.npu().requires_grad_(), weight.npu().requires_grad_()]
    found = torch_npu.npu_nsa_compress(*leaves, 2, 1, actual_seq_len=[3, 7])
    expected = nsa_compress(x, weight, 2, 1, actual_seq_len=[3, 7])
    assert_equal(found.detach(), [expected])
    found.backward(torch.ones_like(found))
    gradients = nsa_compress_grad(torch.ones_like(expected), x, weight, 2, 1, actual_seq_len=[3, 7])
    assert_equal([leaf.grad for leaf in leaves], list(gradients))


def test_selection():
    query, key, value = half(3, 4, 4), half(6, 2, 4), half(6, 2, 4)
    indices = torch.tensor([[[0, 2]], [[1, 0]], [[2, 1]]], dtype=torch.int32).expand(3, 2, 2).contiguous()
    more, where = (0.5, 4, 2, 2), {"actual_seq_qlen": [3], "actual_seq_kvlen": [6]}
    leaves = [x.npu().requires_grad_() for x in (query, key, value)]
    found = torch_npu.npu_nsa_select_attention(*leaves, indices.npu(), *more, **where)
    expected = nsa_select_attention(query, key, value, indices, *more, **where)
    assert_equal([x.detach() for x in found], list(expected))
    found[0].backward(torch.ones_like(found[0]))
    ones = torch.ones_like(expected[0])
    gradients = nsa_select_attention_grad(ones, query, key, value, *expected, indices, *more, **where)
    assert_equal([leaf.grad for leaf in leaves], list(gradients))


def test_a_window_written_to_the_cache():
    pages, weight = half(2, 4, 2, 4), half(2, 2)
    slots, table = torch.tensor([1], dtype=torch.int32), torch.tensor([[1, 0]], dtype=torch.int32)
    cache = torch.zeros(2, 2, 4).half()
    on_npu = cache.npu()
    arguments = (pages, weight, slots, 2, 1, 4)
    expected = nsa_compress_infer(*arguments, block_table=table, actual_seq_len=[5], cache=cache)
    found = torch_npu.npu_nsa_compress_infer(
        *moved(arguments, "npu"), block_table=table.npu(), actual_seq_len=[5], cache=on_npu
    )
    assert found.data_ptr() == on_npu.data_ptr()
    assert_equal(on_npu, [expected])


def test_compressed_attention():
    inputs, sizes = (half(3, 4, 4), half(9, 2, 4), half(9, 2, 3)), (0.5, 4, 4, 2, 8, 2)
    where = {"actual_seq_qlen": [3], "actual_cmp_seq_kvlen": [9], "actual_sel_seq_kvlen": [3]}
    expected = nsa_compress_attention(*inputs, *sizes, **where)
    assert_equal(torch_npu.npu_nsa_compress_attention(*moved(inputs, "npu"), *sizes, **where), list(expected))


def test_a_decoding_step():
    query, key, value = half(1, 4, 4), half(4, 4, 8), half(4, 4, 6)
    table = torch.tensor([[2, 0, 3, 1]], dtype=torch.int32)
    inputs = moved((query, key, value), "npu")
    sizes, where = (0.5, 4, 2, 8, 3, 4, 4, 2), {"block_table": table, "actual_cmp_seq_kvlen": [15]}
    expected = nsa_compress_attention_infer(query, key, value, *sizes, **where)
    found = torch_npu.npu_nsa_compress_attention_infer(*inputs, *sizes, **{**where, "block_table": table.npu()})
    assert_equal(found, list(expected))
    more, where = (0.5, 4, 2, 4, 3, 4), {"layout": "TND", "block_table": table, "actual_seq_kvlen": [15]}
    expected = nsa_select_attention_infer(query, key, value, expected[1], *more, **where)
    found = torch_npu.npu_nsa_select_attention_infer(*inputs, found[1], *more, **{**where, "block_table": table.npu()})
    assert_equal(found, [expected])
