"""The operator against its reference, and its converter against the operator: `pytest`, or `moe-graph check` of this file."""

from __future__ import annotations

import own_operator
import pytest
import torch

from moe_graph import testing
from moe_graph.testing import ConverterCheck, Sample

assert own_operator

SAMPLES = [
    Sample((torch.randn(4, 8), torch.rand(4), torch.randn(8), 0.5)),
    Sample((torch.randn(7, 8), torch.rand(7), torch.randn(8), 0.5)),  # one graph serves this one, too
    Sample((torch.randn(4, 8).bfloat16(), torch.rand(4))),
]
CHECK = ConverterCheck(torch.ops.own_operator.scale_rows, SAMPLES)


def test_converter():
    report = CHECK()
    assert report.ok, report


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_npu_tensors_are_served_as_cpu_tensors_are(sample):
    on_npu = sample.on("npu")
    got = torch.ops.own_operator.scale_rows(*on_npu.args, **on_npu.kwargs)
    want = torch.ops.own_operator.scale_rows(*sample.args, **sample.kwargs)
    torch.testing.assert_close(torch.utils._pytree.tree_map(torch.Tensor.cpu, got), want)


def test_the_graph_is_one_node():
    sample = SAMPLES[0]
    graph = testing.lower(lambda *args: torch.ops.own_operator.scale_rows(*args, **sample.kwargs), *sample.args).graph
    testing.assert_nodes(graph, ScaleRows=1)
