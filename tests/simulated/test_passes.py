"""The pass that replaces the way back by a sort with the way back by transposed counts: what it finds, what it leaves."""

from __future__ import annotations

import pytest
import torch
import torchair

import moe_graph
from moe_graph import testing

counts = torch.tensor([[2, 0, 3], [1, 4, 0]], dtype=torch.int32)
tokens = torch.arange(80.0).view(10, 8).half()
other_counts = torch.tensor([[1, 1, 0], [7, 0, 6]], dtype=torch.int32)
other_tokens = torch.arange(120.0).view(15, 8).half()


def route(tokens, counts, **options):
    y, _, index, _ = torch.ops.npu.npu_moe_re_routing(tokens, counts, **options)
    return y * 2, index


WAYS_BACK = {
    "as public models write it": lambda y, index: y.index_select(0, index.float().argsort().int()),
    "without casts": lambda y, index: y.index_select(0, index.argsort()),
    "by subscript": lambda y, index: y[torch.argsort(index.to(torch.float32))],
    "by sort": lambda y, index: torch.index_select(y, -2, torch.sort(index.float(), dim=0).indices.long()),
}


def lowered(model, *inputs, with_pass=True, **options):
    config = torchair.CompilerConfig()
    if with_pass:
        config.post_grad_custom_pre_pass = moe_graph.passes.un_routing
    return testing.lower(model, *inputs, config=config, **options)


@pytest.mark.parametrize("way_back", WAYS_BACK.values(), ids=WAYS_BACK)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_way_back_by_a_sort_is_replaced(way_back, dynamic):
    def layer(tokens, counts):
        return way_back(*route(tokens, counts))

    calls = [(other_tokens, other_counts)] if dynamic else []
    result = lowered(layer, tokens, counts, dynamic=dynamic, more_inputs=calls)
    testing.assert_nodes(result.graph, MoeReRouting=2, Transpose=1, Sort=0, GatherV2=0)
    testing.assert_equals_eager(result)
    torch.testing.assert_close(result.outputs[0], tokens * 2)  # back in source-rank order


def test_six_nodes_go_and_three_come():
    def layer(tokens, counts):
        return WAYS_BACK["as public models write it"](*route(tokens, counts))

    before = lowered(layer, tokens, counts, with_pass=False).graph.node_types
    after = lowered(layer, tokens, counts).graph.node_types
    assert before - after == {"Cast": 3, "Sort": 1, "GatherV2": 1}
    assert after - before == {"Transpose": 1, "MoeReRouting": 1}
    assert before["Const"] == after["Const"] == 1  # of the gather's axis, of the permutation


def test_layers_and_several_ways_back_of_one_routing():
    def layers(tokens, counts):
        for _ in range(2):
            y, index = route(tokens, counts)
            tokens = y[index.argsort()] + y.index_select(0, index.float().argsort()) + y.square()[index.argsort()]
        return tokens

    result = lowered(layers, tokens / 80, counts)
    testing.assert_nodes(result.graph, MoeReRouting=2 + 6, Transpose=1, Sort=0)
    testing.assert_equals_eager(result)


def padded(tokens, counts):
    y, index = route(tokens, counts)
    return torch.cat([y, y]).index_select(0, index.argsort())


def of_rank_3(tokens, counts):
    y, index = route(tokens, counts)
    return y.view(-1, 2, 4).index_select(0, index.argsort())


def of_columns(tokens, counts):
    y, index = route(tokens[:8], counts[:, :2] + counts[:, 1:])
    return y.index_select(1, index.argsort())


def descending(tokens, counts):
    y, index = route(tokens, counts)
    return y.index_select(0, index.argsort(descending=True))


def of_the_scatter_index(tokens, counts):
    y, index = route(tokens, counts, idx_type=1)
    return y.index_select(0, index.argsort())


def of_another_index(tokens, counts):
    y, index = route(tokens, counts)
    return y.index_select(0, (index % 5).float().argsort())


@pytest.mark.parametrize("model", [padded, of_rank_3, descending, of_the_scatter_index])
def test_what_is_not_the_way_back_is_left_alone(model):
    result = lowered(model, tokens, counts)
    testing.assert_nodes(result.graph, Sort=1, GatherV2=1)
    testing.assert_equals_eager(result)


@pytest.mark.parametrize("model", [of_another_index, of_columns])
def test_other_sorts_are_left_alone(model):
    arguments = (tokens, counts) if model is of_another_index else (tokens, torch.tensor([[2, 0, 1], [0, 2, 1]]).int())
    assert lowered(model, *arguments).graph.node_types["Sort"] == 1


def test_scales_travel_apart():
    def layer(tokens, counts, scales):
        y, y_scales, index, _ = torch.ops.npu.npu_moe_re_routing(tokens, counts, per_token_scales=scales)
        return (y * y_scales[:, None].half()).index_select(0, index.float().argsort().int())

    result = lowered(layer, tokens, counts, torch.rand(10))
    testing.assert_nodes(result.graph, MoeReRouting=2, Sort=0)
    testing.assert_equals_eager(result)
