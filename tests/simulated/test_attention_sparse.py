"""Sparse attention as models call it: the indexer's choice goes into the attention; GE operators that CANN alone knows."""

from __future__ import annotations

import pytest
import torch
import torchair

from attention import sequences
from attention.device import assert_everywhere
from moe_graph import testing
from moe_graph.checking.finding import ERROR
from moe_graph.checking.shapes import check_shapes
from moe_graph.operators.attention.kv_quant_sparse_flash_attention import kv_quant_sparse_flash_attention
from moe_graph.operators.attention.lightning_indexer import lightning_indexer
from moe_graph.operators.attention.quant_lightning_indexer import quant_lightning_indexer
from moe_graph.operators.attention.sparse_flash_attention import sparse_flash_attention
from moe_graph.simulator.graph_mode.ir_definitions import ir_definition

NPU, DTYPE = torch.ops.npu, torch.bfloat16
LENGTHS, BLOCK = [7, 4], 4


def step(width, seed, heads=4):
    """Two queries of one sequence, one of the other, packed."""
    return sequences.lay_out(sequences.make([2, 1], heads, width, DTYPE, seed), "TND", DTYPE)


def cache(width, seed):
    pages, table = sequences.pages(sequences.make(LENGTHS, 1, width, DTYPE, seed), BLOCK, "BnBsH", DTYPE, 0)
    return pages.unsqueeze(2), table


def common(table, side):
    return {
        "actual_seq_lengths_query": torch.tensor([2, 3], dtype=torch.int32),
        f"actual_seq_lengths_{side}": torch.tensor(LENGTHS, dtype=torch.int32),
        "block_table": table,
        "layout_query": "TND",
        f"layout_{side}": "PA_BSND",
    }


@pytest.fixture(scope="module")
def chosen():
    key, table = cache(8, 5)
    arguments = {"query": step(8, 4), "key": key, "weights": step(1, 6).squeeze(-1), "sparse_count": 3}
    arguments.update(common(table, "key"))
    indices, _ = assert_everywhere(NPU.npu_lightning_indexer, lightning_indexer, arguments)
    assert indices.tolist()[0][0] != indices.tolist()[1][0]
    return indices


def attended(chosen):
    key, table = cache(16, 0)
    rope, _ = cache(4, 1)
    return {
        "query": step(16, 2),
        "key": key,
        "value": key,
        "sparse_indices": chosen,
        "scale_value": 0.3,
        "query_rope": step(4, 3),
        "key_rope": rope,
        "attention_mode": 2,
        **common(table, "kv"),
    }


def test_the_chosen_keys_are_attended(chosen):
    output, *_ = assert_everywhere(NPU.npu_sparse_flash_attention, sparse_flash_attention, attended(chosen))
    assert output.isfinite().all() and output.abs().sum() > 0


def test_a_transposed_result_that_depends_on_values_is_no_error_of_the_graph(chosen):
    """torchair puts the transposition off and describes it at the attention, whose own shape only values tell."""

    arguments = attended(chosen)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}

    def layer(weights, *given):
        output = NPU.npu_sparse_flash_attention(**{**arguments, **dict(zip(tensors, given))})[0]  # [T, N, D]
        return output.transpose(0, 1) @ weights  # [N, T, D] @ [N, D, 8]

    lowered: list = []
    with testing.recorded(lowered):
        compiled = torch.compile(layer, backend=torchair.get_npu_backend(), fullgraph=True)
        compiled(*(tensor.npu() for tensor in (torch.randn(4, 16, 8).to(DTYPE), *tensors.values())))
    (graph,) = lowered
    assert graph.node_types["BatchMatMul"] == 1
    assert [finding for finding in check_shapes(graph.definition) if finding.severity == ERROR] == []


def test_int8_forms(chosen):
    generator = torch.Generator().manual_seed(0)

    def integers(*shape):
        return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)

    table = cache(8, 5)[1]
    arguments = {
        "query": integers(3, 4, 8),
        "key": integers(4, BLOCK, 1, 8),
        "weights": torch.rand(3, 4, generator=generator).half(),
        "query_dequant_scale": torch.rand(3, 4, generator=generator).half(),
        "key_dequant_scale": torch.rand(4, BLOCK, 1, generator=generator).half(),
        "query_quant_mode": 0,
        "key_quant_mode": 0,
        "sparse_count": 3,
        **common(table, "key"),
    }
    assert_everywhere(NPU.npu_quant_lightning_indexer, quant_lightning_indexer, arguments)
    scales = (torch.rand(4, BLOCK, 1, 2, generator=generator) / 99).view(torch.int8)
    key = torch.cat([integers(4, BLOCK, 1, 8), cache(4, 1)[0].nan_to_num(1.0).view(torch.int8), scales], -1)
    arguments = {
        "query": step(12, 2),
        "key": key,
        "value": key,
        "sparse_indices": chosen,
        "scale_value": 0.3,
        "key_quant_mode": 2,
        "value_quant_mode": 2,
        "attention_mode": 2,
        "tile_size": 4,
        "rope_head_dim": 4,
        **common(table, "kv"),
    }
    assert_everywhere(NPU.npu_kv_quant_sparse_flash_attention, kv_quant_sparse_flash_attention, arguments)


def test_the_definition_of_what_cann_alone_knows_is_the_kernels_signature():
    definition = ir_definition("LightningIndexer")
    assert definition.status == "SUCCESS"
    assert definition.inputs[:4] == [
        ("query", "required"),
        ("key", "required"),
        ("weights", "required"),
        ("actual_seq_lengths_query", "optional"),
    ]
    assert definition.outputs == [("sparse_indices", "required"), ("sparse_values", "required")]
    assert dict(definition.attrs)["return_values"] == "VT_BOOL" and dict(definition.attrs)["sparse_count"] == "VT_INT"
    assert ir_definition("NoSuchOperator").status == "ERROR"
