"""The trace of graphs that torchair lowered."""

import json
import subprocess
import sys
import threading

import pytest
import torch
import torchair
from rich.console import Console

import cases
import moe_graph
from moe_graph.engine import KernelError, registry
from moe_graph.engine.trace import Statistics, statistics_of


def compiled(function, **how):
    torch._dynamo.reset()
    return torch.compile(function, backend=torchair.get_npu_backend(), **how)


def text(table):
    console = Console(width=400)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def function(x):
    return torch.relu(x * 2).sum(0), torch.split(x, 2)[1]


def test_every_node_of_every_run_is_recorded(lowered):
    f = compiled(function)
    x = torch.arange(-6.0, 6).view(4, 3).npu()
    f(x)
    with moe_graph.trace() as trace:
        f(x)
        f(x)
    f(x)
    computed = [t for t in lowered[0].node_types if t not in ("Data", "Const", "NetOutput")]
    assert len(trace.nodes) == 2 * len(lowered[0]._plan.order) <= 2 * len(computed)
    assert {node.type for node in trace.nodes} >= {"Mul", "Relu", "ReduceSum"}
    assert [node.run for node in trace.nodes] == sorted([0, 1] * (len(trace.nodes) // 2))
    ends = [node.start + node.duration for node in trace.nodes]
    assert all(end <= later.start + 1e-9 for end, later in zip(ends, trace.nodes[1:]))
    assert all(node.duration > 0 and node.thread == threading.get_ident() for node in trace.nodes)
    (relu, _) = [node for node in trace.nodes if node.type == "Relu"]
    assert relu.source.startswith("relu-aten.relu.default.OUTPUT.0") and "test_trace.py" in relu.source
    assert [(o.dtype, o.shape, o.statistics, o.file) for o in relu.outputs] == [(torch.float32, (4, 3), None, None)]


def test_shapes_are_those_of_the_run():
    f = compiled(lambda x: x * 2, dynamic=True)
    with moe_graph.trace() as trace:
        for length in (5, 7):
            f(torch.ones(length, 2).npu())
    assert [node.outputs[0].shape for node in trace.nodes if node.type == "Mul"] == [(5, 2), (7, 2)]


def test_statistics_and_saved_tensors(tmp_path):
    f = compiled(lambda x, y: (x * 2, y + 1))
    x = torch.tensor([1.0, -3.0, float("nan"), float("inf"), -float("inf")]).npu()
    with moe_graph.trace(statistics=True, save_tensors=tmp_path / "new" / "folder") as trace:
        f(x, torch.empty(0, 2, dtype=torch.bfloat16).npu())
    (mul,) = [node for node in trace.nodes if node.type == "Mul"]
    assert mul.outputs[0].statistics == Statistics(-6.0, 2.0, -2.0, nan=1, inf=2)
    assert torch.equal(torch.load(mul.outputs[0].file)[:2], torch.tensor([2.0, -6.0]))
    assert len(list((tmp_path / "new" / "folder").iterdir())) == sum(len(node.outputs) for node in trace.nodes)
    shown = text(trace.table())
    assert "-6 .. 2, mean -2, 1 NaN, 2 Inf" in shown and "mul-aten.mul.Tensor" in shown and "float32 [5]" in shown


DTYPES = cases.existing("bool", "uint8", "uint64", "int64", "bfloat16", "float8_e4m3fn", "complex64")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_of_every_dtype(dtype):
    assert statistics_of(torch.tensor([[0, 1], [1, 0]]).to(dtype)) == Statistics(0, 1, 0.5, 0, 0)
    assert statistics_of(torch.empty(0, 3, dtype=dtype)) == Statistics(None, None, None, 0, 0)
    assert str(statistics_of(torch.empty(0, dtype=dtype))) == "no finite element"


def test_chrome_trace(tmp_path):
    f = compiled(function)
    x = torch.full((4, 3), float("nan")).npu()
    with moe_graph.trace(statistics=True) as trace:
        f(x)
        f(x)
    trace.chrome_trace(tmp_path / "trace.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    events = json.loads((tmp_path / "trace.json").read_text(), parse_constant=refuse)["traceEvents"]
    bars = [event for event in events if event["ph"] == "X"]
    assert all({"name", "cat", "ts", "dur", "pid", "tid"} <= set(event) for event in bars)
    runs, nodes = [e for e in bars if e["cat"] == "graph"], [e for e in bars if e["cat"] != "graph"]
    assert len(runs) == 2 and [event["name"] for event in nodes] == [node.type for node in trace.nodes]
    for event in nodes:
        assert any(r["ts"] <= event["ts"] and event["ts"] + event["dur"] <= r["ts"] + r["dur"] + 1e-3 for r in runs)
    assert nodes[0]["args"]["outputs"][0]["statistics"]["nan"] == 12


def test_table_by_type():
    f = compiled(function)
    with moe_graph.trace() as trace:
        f(torch.ones(4, 3).npu())
    shown = text(trace.table(by_type=True))
    assert "Relu" in shown and "%" in shown and f"{len(trace.nodes)} nodes" in shown
    shares = [float(word[:-1]) for word in shown.replace("│", " ").split() if word.endswith("%")]
    assert shares == sorted(shares, reverse=True) and abs(sum(shares) - 100) < 1


def test_a_failing_node_leaves_the_nodes_before_it(monkeypatch):
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("out of order")

    monkeypatch.setitem(registry._kernels, "Relu", registry._describe(broken))
    f = compiled(function)
    with moe_graph.trace() as trace, pytest.raises(KernelError):
        f(torch.ones(4, 3).npu())
    assert "Mul" in [node.type for node in trace.nodes] and "Relu" not in [node.type for node in trace.nodes]


def test_a_backward_graph_runs_in_another_thread():
    def run(**how):
        f = compiled(lambda x: (x * x).sum())
        with moe_graph.trace(**how) as trace:
            f(torch.ones(3).npu().requires_grad_()).backward()
        return {node.graph for node in trace.nodes}

    assert len(run()) == 1
    assert len(run(all_threads=True)) == 2


def test_an_empty_trace(tmp_path):
    with moe_graph.trace() as trace:
        pass
    trace.chrome_trace(tmp_path / "trace.json")
    assert not trace.nodes and "0 nodes" in text(trace.table()) and "0 nodes" in text(trace.table(by_type=True))


@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead"])
def test_the_first_node_that_is_not_finite(mode):
    config = torchair.CompilerConfig()
    config.mode = mode
    compiled = torch.compile(lambda x: (x + 1).log() * 2, backend=torchair.get_npu_backend(compiler_config=config))
    with moe_graph.trace(statistics=True) as trace:
        compiled(torch.ones(3).npu())
        assert trace.first_non_finite is None
        compiled(torch.tensor([1.0, -1.0, -3.0]).npu())
    first = trace.first_non_finite
    assert first.type in ("Log", "aten.log_.default", "aten.log.default") and first.run == 1
    assert (first.outputs[0].statistics.nan, first.outputs[0].statistics.inf) == (1, 1)


SCRIPT = """
import sys, torch, torch_npu, torchair
torch.compile(lambda x: x * 2, backend=torchair.get_npu_backend())(torch.ones(3).npu())
sys.exit(3)
"""


def test_command_line(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "moe_graph", "run", "-q", "--trace"]
    to_file = subprocess.run([*command, "trace.json", "script.py"], cwd=tmp_path, capture_output=True, timeout=300)
    assert to_file.returncode == 3, to_file.stderr
    names = [event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    assert "Mul" in names
    shown = subprocess.run([*command, "-", "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 3 and "Mul" in shown.stderr and not shown.stdout
