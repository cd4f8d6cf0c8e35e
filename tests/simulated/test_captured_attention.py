"""Attention in a captured graph: its lengths change between replays, by NPUGraph.update."""

import pytest
import torch
import torch_npu


@pytest.mark.parametrize("version", [1, 2])
def test_lengths_change_between_replays(version):
    torch.manual_seed(0)
    query = torch.randn(2, 4, 1, 64, dtype=torch.bfloat16).npu()
    key, value = (torch.randn(2, 2, 16, 64, dtype=torch.bfloat16).npu() for _ in range(2))
    if version == 1:
        operator, lengths = torch_npu.npu_fused_infer_attention_score, "actual_seq_lengths_kv"
        options = dict(num_heads=4, num_key_value_heads=2, input_layout="BNSD", scale=0.125)
    else:
        operator, lengths = torch_npu.npu_fused_infer_attention_score_v2, "actual_seq_kvlen"
        options = dict(num_query_heads=4, num_key_value_heads=2, input_layout="BNSD", softmax_scale=0.125)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, stream=torch.npu.Stream(), auto_dispatch_capture=True):
        captured = operator(query, key, value, **{lengths: [5, 9]}, **options)[0]
    for given in ([5, 9], [16, 3], [1, 1]):
        expected = operator(query, key, value, **{lengths: given}, **options)[0].cpu()
        graph.replay()
        graph.update(cpu_update_input=[{lengths: given}])
        torch.npu.synchronize()
        assert torch.equal(captured.cpu(), expected), given


def test_the_out_form_writes_to_its_tensors():
    query = torch.randn(2, 4, 1, 64, dtype=torch.bfloat16).npu()
    key = torch.randn(2, 2, 16, 64, dtype=torch.bfloat16).npu()
    options = dict(num_query_heads=4, num_key_value_heads=2, input_layout="BNSD", softmax_scale=0.125)
    expected = torch_npu.npu_fused_infer_attention_score_v2(query, key, key, **options)[0]
    out = [torch.empty_like(query), torch.empty(0).npu()]
    torch_npu.npu_fused_infer_attention_score_v2.out(query, key, key, out=out, workspace=None, **options)
    assert torch.equal(out[0].cpu(), expected.cpu())
    with pytest.raises(ValueError, match="attention_out must have shape"):
        wrong = [torch.empty(1).bfloat16().npu(), torch.empty(0).npu()]
        torch_npu.npu_fused_infer_attention_score_v2.out(query, key, key, out=wrong, **options)


def test_the_workspace_is_enough_for_the_out_forms():
    """A caller allocates what _get_max_workspace gives, as torch_npu's capture does, and hands it over."""
    query = torch.randn(2, 4, 1, 64, dtype=torch.bfloat16).npu()
    key = torch.randn(2, 2, 16, 64, dtype=torch.bfloat16).npu()
    ops, sizes = torch.ops.npu, dict(num_key_value_heads=2, input_layout="BNSD")
    for name, options in (
        ("_npu_fused_infer_attention_score_get_max_workspace", dict(num_heads=4, scale=0.125, **sizes)),
        (
            "_npu_fused_infer_attention_score_v2_get_max_workspace",
            dict(num_query_heads=4, softmax_scale=0.125, **sizes),
        ),
    ):
        workspace = getattr(ops, name)(query, key, key, **options)
        name = name.removeprefix("_").removesuffix("_get_max_workspace")
        assert workspace.is_npu and workspace.dtype == torch.uint8
        out = [torch.empty_like(query), torch.empty(0).npu()]
        getattr(ops, name).out(query, key, key, out=out, workspace=workspace, **options)
        assert torch.equal(out[0].cpu(), getattr(ops, name)(query, key, key, **options)[0].cpu())
    forward = ops._npu_fusion_attention_v3_get_max_workspace(query, query, query, 4, "BNSD")
    backward = ops._npu_fusion_attention_grad_v3_get_max_workspace(query, query, query, query, 4, "BNSD")
    assert all(w.is_npu and w.dtype == torch.uint8 for w in (forward, backward))


def test_gradients_without_a_sink_and_lengths_on_the_host():
    torch.manual_seed(0)
    query, key, value, dy = (torch.randn(6, 2, 16).half().npu() for _ in range(4))
    ends = torch.tensor([2, 6])
    sizes = dict(scale_value=0.25, actual_seq_qlen=ends, actual_seq_kvlen=ends)

    def step():
        out, maximum, total, *_ = torch.ops.npu.npu_fusion_attention_v3(
            query, key, value, 2, "TND", scale=0.25, actual_seq_qlen=ends, actual_seq_kvlen=ends
        )
        given = dict(softmax_max=maximum, softmax_sum=total, attention_in=out)
        return torch.ops.npu.npu_fusion_attention_grad_v3(query, key, value, dy, 2, "TND", **given, **sizes)

    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        captured = step()
    for tensor in (query, key, value, dy):
        tensor.copy_(torch.randn(6, 2, 16).half())
    graph.replay()
    for found, wanted in zip(captured, step()):
        assert found.shape == wanted.shape and torch.equal(found.cpu(), wanted.cpu())
    assert captured[0].abs().sum() > 0
