"""Why a call is not one node: told with the model's line; and that line is the node's in torchair's dumps."""

import logging
import os
import subprocess
import sys

import pytest
import torch
import torchair

import cases
import moe_graph
from moe_graph.converters import decisions


def lowered(function, *arguments, config=None):
    torch._dynamo.reset()
    backend = torchair.get_npu_backend(compiler_config=config or torchair.CompilerConfig())
    torch.compile(function, backend=backend, fullgraph=True)(*(argument.npu() for argument in arguments))


CALLS = {
    "one node": (torch.int8, 8, {}, "one node"),
    "dtype": (torch.float32, 8, {}, "has no torch.float32 tokens"),
    "H": (torch.int8, 16384, {}, "H = 16384 is not below its kernel's limit of 16384"),
    "cumsum": (torch.int8, 8, {"expert_token_num_type": 0}, "no running sum"),
    "scatter": (torch.int8, 8, {"idx_type": 1}, "no scatter index"),
}


@pytest.mark.parametrize("dtype, hidden, arguments, reason", CALLS.values(), ids=CALLS)
def test_the_reason_and_the_models_line(caplog, dtype, hidden, arguments, reason):
    def model(tokens, counts):
        return moe_graph.moe_re_routing(tokens, counts, **arguments)  # the model's line

    with caplog.at_level(logging.INFO, "moe_graph.lowering"):
        lowered(model, torch.ones(10, hidden, dtype=dtype), cases.make_counts(2, 3, 10, seed=1))
    (record,) = (record for record in caplog.records if record.name == "moe_graph.lowering")
    text = record.getMessage()
    assert text.startswith("npu_moe_re_routing for A2: ") and reason in text
    assert "test_decisions.py" in text and "# the model's line" in text
    assert ("composed" in text) == (reason != "one node")


def test_the_dump_names_the_models_line(tmp_path):
    def model(tokens, counts):
        return moe_graph.moe_re_routing(tokens, counts).permute_tokens  # the line that is named

    config = torchair.CompilerConfig()
    config.debug.graph_dump.type, config.debug.graph_dump.path = "py", str(tmp_path)
    lowered(model, torch.ones(10, 8, dtype=torch.int8), cases.make_counts(2, 3, 10, seed=1), config=config)
    text = next(tmp_path.glob("*original*.py")).read_text()
    assert "the line that is named" in text and "functional.py" not in text


def test_frames_of_this_package_alone_are_kept():
    stack = f'  File "{moe_graph.__path__[0]}/testing.py", line 1, in f\n    x\n'
    assert decisions.without_ours(stack) == stack
    both = f'  File "/model.py", line 7, in forward\n    route(x)\n{stack}'
    assert decisions.line_of(both) == '"/model.py", line 7, in forward: route(x)'
    assert decisions.line_of(None) == ""


def test_torch_logs_shows_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import torch, torch_npu, torchair\n"
        "f = torch.compile(torch_npu.npu_moe_re_routing, backend=torchair.get_npu_backend())\n"
        "f(torch.ones(3, 2).npu(), torch.tensor([[1, 2]], dtype=torch.int32).npu())\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "moe_graph", "run", "-q", program],
        capture_output=True, text=True, timeout=300, env={**os.environ, "TORCH_LOGS": "+moe_graph"},
    )  # fmt: skip
    assert run.returncode == 0 and "npu_moe_re_routing for A2: composed of several nodes" in run.stderr, run.stderr
