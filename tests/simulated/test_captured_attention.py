"""Attention in a captured graph: its lengths change between replays, by NPUGraph.update."""

import pytest
import torch
import torch_npu

from versions import need_operator


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


def test_lengths_of_training_change_between_replays():
    need_operator("_npu_fusion_attention_v3_get_max_workspace")  # without it torch_npu updates no launch of training
    torch.manual_seed(0)
    query, key, value, dy = (torch.randn(6, 4, 16).half().npu() for _ in range(4))

    def step(ends):
        lengths = dict(actual_seq_qlen=ends, actual_seq_kvlen=ends)
        out, maximum, total, *_ = torch_npu.npu_fusion_attention_v3(query, key, value, 4, "TND", scale=0.25, **lengths)
        states = dict(softmax_max=maximum, softmax_sum=total, attention_in=out, scale_value=0.25)
        grads = torch_npu.npu_fusion_attention_grad_v3(query, key, value, dy, 4, "TND", **states, **lengths)
        return out, maximum, total, *grads[:3]

    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, stream=torch.npu.Stream(), auto_dispatch_capture=True):
        captured = step(torch.tensor([2, 6]))
    for ends in ([2, 6], [5, 6], [1, 6]):
        given = torch.tensor(ends)
        expected = [x.cpu() for x in step(given)]
        graph.replay()
        graph.update(cpu_update_input=[dict(actual_seq_qlen=given, actual_seq_kvlen=given)] * 2)
        torch.npu.synchronize()
        assert all(torch.equal(found.cpu(), wanted) for found, wanted in zip(captured, expected)), ends
    out = [torch.empty_like(query), *(torch.empty(6, 4, 8).npu() for _ in range(3)), *torch.zeros(2, 1).long().npu()]
    with pytest.raises(NotImplementedError, match="fusion_attention_v3.out: keep_prob must be 1, got 0.5"):
        torch.ops.npu.npu_fusion_attention_v3.out(query, key, value, 4, "TND", keep_prob=0.5, out=out)


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
    need_operator("_npu_fusion_attention_v3_get_max_workspace")
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


@pytest.mark.parametrize("parallel", [False, True])
def test_dropout_draws_anew_in_each_replay(parallel):
    """As the same calls outside of the graph, from the same state of the generator; the gradient takes the mask of its replay."""
    query, dy = torch.zeros(1, 1, 16, 16).half().npu(), torch.eye(16).half().npu().view(1, 1, 16, 16)
    ones = dy.clone()

    def step():
        out, maximum, total, _, seed, offset = torch.ops.npu.npu_fusion_attention_v3(
            query, query, ones, 1, "BNSD", keep_prob=0.5, gen_mask_parallel=parallel
        )
        noise = torch.rand(3, device="npu")
        states = dict(softmax_max=maximum, softmax_sum=total, attention_in=out, seed=seed, offset=offset)
        gradient = torch.ops.npu.npu_fusion_attention_grad_v3(
            query, query, ones, dy, 1, "BNSD", keep_prob=0.5, **states
        )
        return out, noise, gradient[2], seed, offset

    torch.npu.manual_seed(5)
    eager = [[x.cpu() for x in step()] for _ in range(2)]
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        captured = step()
    assert captured[3].is_npu and captured[4].is_npu and not eager[0][3].is_npu
    torch.npu.manual_seed(5)
    for wanted in eager:
        graph.replay()
        found = [x.cpu() for x in captured]
        assert all(torch.equal(one, other) for one, other in zip(found, wanted))
    assert not torch.equal(eager[0][0], eager[1][0])
    for out, _, of_value, _, _ in eager:  # equal scores, 1/16 each, doubled where they are kept
        assert set(out.unique().tolist()) == {0.0, 0.125} and 64 < int((out > 0).sum()) < 192
        assert torch.equal(of_value[0, 0].T, out[0, 0])


def test_dropout_whose_seed_is_a_number_cannot_be_captured():
    query = torch.zeros(1, 1, 16, 16).half().npu()
    graph = torch.npu.NPUGraph()
    with pytest.raises(RuntimeError, match="dropout cannot be captured.*npu_fusion_attention_v3"):
        with torch.npu.graph(graph):
            torch.ops.npu.npu_fusion_attention(query, query, query, 1, "BNSD", keep_prob=0.5)
