"""npu_fused_infer_attention_score and its _v2 as models call them: NPU tensors, fakes, graphs, lengths as lists and as tensors."""

from __future__ import annotations

import pytest
import torch
import torchair

from attention import sequences
from attention.device import assert_equal, assert_everywhere, moved
from moe_graph.operators.attention.fused_infer_attention_score import fused_infer_attention_score
from moe_graph.operators.attention.fused_infer_attention_score_v2 import fused_infer_attention_score_v2
from moe_graph.operators.attention.incre_flash_attention import incre_flash_attention
from moe_graph.operators.attention.prompt_flash_attention import prompt_flash_attention

V1, V2 = torch.ops.npu.npu_fused_infer_attention_score, torch.ops.npu.npu_fused_infer_attention_score_v2
DTYPE = torch.bfloat16


def prompts(layout, lengths=(3, 2), heads=4, kv_heads=2, width=8, **more):
    given = layout.partition("_")[0]
    query, key, value = (
        sequences.lay_out(sequences.make(lengths, count, width, DTYPE, seed), given, DTYPE, fill=0)
        for seed, count in enumerate((heads, kv_heads, kv_heads))
    )
    listed = sequences.ends(lengths) if given in ("TND", "NTD") else list(lengths)
    return {
        "query": query,
        "key": key,
        "value": value,
        "num_heads": heads,
        "num_key_value_heads": kv_heads,
        "input_layout": layout,
        "scale": 0.3,
        "actual_seq_lengths": listed,
        "actual_seq_lengths_kv": listed,
        **more,
    }


@pytest.mark.parametrize("layout", ["BSH", "BSND_NBSD", "NTD_TND"])
def test_prompts(layout):
    arguments = prompts(layout, sparse_mode=3, atten_mask=sequences.triangle(), softmax_lse_flag=True)
    assert_everywhere(V1, fused_infer_attention_score, arguments)


def test_prompt_and_single_step_operators():
    shared = prompts("BNSD")
    del shared["scale"], shared["actual_seq_lengths"]
    assert_everywhere(
        torch.ops.npu.npu_prompt_flash_attention,
        prompt_flash_attention,
        {**shared, "scale_value": 0.3, "sparse_mode": 2, "atten_mask": sequences.triangle()},
    )
    del shared["actual_seq_lengths_kv"]
    integers = torch.randint(-128, 128, (2, 2, 5, 8), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    step = {"query": shared["query"][:, :, :1], "key": integers, "value": integers, "actual_seq_lengths": [5, 2]}
    step["antiquant_scale"] = torch.full((2, 16), 0.02, dtype=DTYPE)
    assert_everywhere(torch.ops.npu.npu_incre_flash_attention, incre_flash_attention, {**shared, **step})


def latent(block_size=4, lengths=(5, 3), heads=4):
    """A decoding step of latent attention: paged keys in the NZ form, which are the values, too."""
    queries = sequences.make([1] * len(lengths), heads, 32, DTYPE, 0)
    rope = sequences.make([1] * len(lengths), heads, 16, DTYPE, 1)
    cache, table = sequences.pages(sequences.make(lengths, 1, 32, DTYPE, 2), block_size, "NZ", DTYPE, 0)
    key_rope, _ = sequences.pages(sequences.make(lengths, 1, 16, DTYPE, 3), block_size, "NZ", DTYPE, 0)
    return {
        "query": sequences.lay_out(queries, "TND", DTYPE),
        "key": cache,
        "value": cache,
        "query_rope": sequences.lay_out(rope, "TND", DTYPE),
        "key_rope": key_rope,
        "block_table": table,
        "block_size": block_size,
        "num_query_heads": heads,
        "num_key_value_heads": 1,
        "input_layout": "TND_NTD",
        "softmax_scale": 0.2,
        "actual_seq_qlen": list(range(1, len(lengths) + 1)),
        "actual_seq_kvlen": list(lengths),
    }


def test_latent_attention_of_a_paged_cache():
    output, _ = assert_everywhere(V2, fused_infer_attention_score_v2, latent())
    assert output.shape == (4, 2, 32) and output.isfinite().all()


def test_lengths_as_tensors():
    """Eagerly torch reads the numbers of a tensor given for a list; in a graph torchair.ops has operators that take the tensor."""
    arguments = latent()
    expected = fused_infer_attention_score_v2(**arguments)
    arguments = moved(
        {**arguments, **{name: torch.tensor(arguments[name]) for name in ("actual_seq_qlen", "actual_seq_kvlen")}},
        "npu",
    )
    assert_equal(V2(**arguments), expected)
    names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    others = {name: value for name, value in arguments.items() if name not in names}

    def step(*tensors):
        return torchair.ops.npu_fused_infer_attention_score_v2(**dict(zip(names, tensors)), **others)

    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(step, backend=torchair.get_npu_backend(), dynamic=dynamic, fullgraph=True)
        assert_equal(compiled(*(arguments[name] for name in names)), expected)


def test_sinks_in_a_graph():
    arguments = prompts("TND")
    renamed = {"num_heads": "num_query_heads", "scale": "softmax_scale", "actual_seq_lengths": "actual_seq_qlen"}
    renamed["actual_seq_lengths_kv"] = "actual_seq_kvlen"
    arguments = {renamed.get(name, name): value for name, value in arguments.items()}
    arguments["learnable_sink"] = torch.tensor([0.5, 1.0, -1.0, 0.0]).bfloat16()
    assert_everywhere(V2, fused_infer_attention_score_v2, arguments)


def test_quantized_keys_and_output_in_a_graph():
    arguments = prompts("BNSD")
    for name in ("key", "value"):
        arguments[name] = torch.randint(-128, 128, arguments[name].shape, dtype=torch.int8)
        arguments[f"{name}_antiquant_scale"] = torch.full((2, 8), 0.02, dtype=DTYPE)
    arguments["quant_scale2"] = torch.tensor([40.0])
    output, _ = assert_everywhere(V1, fused_infer_attention_score, arguments)
    assert output.dtype == torch.int8
