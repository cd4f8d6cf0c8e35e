"""config.dump_config on the simulated device: the tensors of each operator, in the files that a device writes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
import torch
import torch_npu  # noqa: F401
import torchair

from moe_graph.data_dump import folder, operator_file
from moe_graph.simulator.graph_mode import data_dump


@pytest.fixture
def dumps(tmp_path, monkeypatch):
    """Tell the device what to dump below tmp_path, in the words of acl.json; nothing is dumped after the test."""
    monkeypatch.setattr(data_dump, "_writer", data_dump.Writer())
    monkeypatch.setattr(data_dump, "_open", opened := contextlib.ExitStack())

    def tell(**description):
        (tmp_path / "acl.json").write_text(json.dumps({"dump": {"dump_path": str(tmp_path), **description}}))
        data_dump.set_dump(str(tmp_path / "acl.json"))

    with opened:
        yield tell


def run(times=1):
    torch._dynamo.reset()
    function = torch.compile(lambda x, y: torch.relu(x @ y) + 1, backend=torchair.get_npu_backend(), dynamic=False)
    x, y = (torch.arange(4, dtype=torch.bfloat16).reshape(2, 2).npu() for _ in range(2))
    for _ in range(times):
        function(x, y)


def test_each_operator_of_each_run_is_dumped(tmp_path, dumps):
    dumps(dump_mode="all", dump_list=[])
    run(times=2)
    places = folder.places(tmp_path)
    assert {place.run for place in places} == {0, 1}
    first = {place.type: operator_file.read(place.path) for place in places if place.run == 0}
    product = next(dumped for type_, dumped in first.items() if "MatMul" in type_)
    assert [given.value.tolist() for given in product.inputs[:2]] == [[[0, 1], [2, 3]]] * 2
    assert product.outputs[0].value.tolist() == [[2, 3], [6, 11]]
    assert product.outputs[0].value.dtype == torch.bfloat16
    assert first["Add"].outputs[0].value.tolist() == [[3, 4], [7, 12]]
    parts = places[0].path.relative_to(tmp_path).parts  # TIME/DEVICE/GRAPH/NUMBER/RUN/file
    assert len(parts) == 6 and parts[1] == "0" and parts[2].startswith("graph_") and parts[3:5] == ("1", "0")


def test_runs_and_operators_are_chosen(tmp_path, dumps):
    dumps(dump_step="1|3-4", dump_mode="output")
    run(times=5)
    places = folder.places(tmp_path)
    assert {place.run for place in places} == {1, 3, 4}
    assert operator_file.read(places[0].path).inputs == []
    (graph,) = {place.path.parents[2].name for place in places}
    chosen = data_dump.settings({"dump_path": "", "dump_list": [{"model_name": graph, "layer": ["Relu"]}]})
    assert chosen.operators == {graph: frozenset({"Relu"})}


def test_graphs_that_are_not_in_the_list_are_not_dumped(tmp_path, dumps):
    dumps(dump_list=[{"model_name": "another"}])
    run()
    assert not [path for path in tmp_path.rglob("*") if path.is_dir()]


PROGRAM = """
import torch, torch_npu, torchair
config = torchair.CompilerConfig()
config.dump_config.enable_dump = True
config.dump_config.dump_path = "."
config.dump_config.dump_layer = "Relu"
torch.compile(lambda x: torch.relu(x) + 1, backend=torchair.get_npu_backend(compiler_config=config))(torch.ones(2).npu())
"""


@pytest.mark.slow  # torchair takes one dump_config a process
def test_the_configuration_of_torchair_reaches_the_device(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    subprocess.run(
        [sys.executable, "-m", "moe_graph", "run", "-q", "program.py"], cwd=tmp_path, check=True, timeout=300
    )
    (place,) = folder.places(tmp_path)
    assert (place.type, place.run) == ("Relu", 0)
    assert operator_file.read(place.path).outputs[0].value.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("dump_data", "stats", "'tensor', got 'stats'"),
        ("dump_debug", "on", "dump_debug is not built"),
        ("dump_mode", "x", "got 'x'"),
    ],
)
def test_what_is_not_built_is_refused_by_name(tmp_path, key, value, words):
    with pytest.raises(ValueError, match=words):
        data_dump.settings({"dump_path": str(tmp_path), key: value})
