"""`inspect --check`: graphs as torchair writes them have no error, and faults that are put into them are found."""

from __future__ import annotations

import functools
from pathlib import Path

import graph_faults
import pytest

from moe_graph.checking import dumps
from moe_graph.checking.graph import check_graph
from moe_graph.dumps import inspect
from moe_graph.dumps.reading import read
from moe_graph.foundation import cann

pytestmark = pytest.mark.skipif(not cann.torch_npu_is_installed(), reason="the definitions are torchair's")

DUMPS = Path(__file__).parents[1] / "dumps"
TEXT = DUMPS / "dynamo_optimized_graph_1.txt"


@functools.cache
def _read():
    return dumps._definition(TEXT.read_text())


def definition():
    graph = type(_read())()
    graph.CopyFrom(_read())
    return graph


def test_graphs_of_torchair_have_no_error():
    for graph in read(DUMPS):
        assert [str(f) for f in check_graph(graph) if f.severity == "error"] == [], graph.name


def test_generated_faults_are_found():
    as_it_is, missed, total = graph_faults.walk(definition())
    assert not as_it_is
    assert total >= 40
    assert len(missed) <= 0.05 * total, missed


def test_the_command(capsys, tmp_path):
    assert inspect.main([str(TEXT), "--check"]) == 0
    assert "nodes, 0 errors" in capsys.readouterr().out
    graph = definition()
    next(node for node in graph.op if node.type == "MoeReRouting").type = "MoeReRoute"
    from google.protobuf import text_format

    path = tmp_path / TEXT.name
    path.write_text(text_format.MessageToString(graph))
    assert inspect.main([str(path), "--check"]) == 1
    shown = capsys.readouterr().out
    assert "(MoeReRoute): no GE type of this name is known; moe_graph.plugins.define declares one" in shown
