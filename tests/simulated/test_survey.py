"""`python -m moe_graph survey`: a program is run to its end although operators are missing, and what it lacks is listed, not run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from moe_graph.foundation import marks, survey

# An operator that is served here is hidden; a GE type that nobody has comes from a converter of the program's own.
PROGRAM = """
import torch, torch_npu, torchair
from moe_graph import operators
served = operators.every()
del served["npu::npu_rms_norm"]
library = torch.library.Library("mine", "DEF")
library.define("scaled(Tensor x) -> Tensor")
library.impl("scaled", lambda x: 2 * x, "PrivateUse1")
library.impl("scaled", torch.empty_like, "Meta")

@torchair.register_fx_node_ge_converter(torch.ops.mine.scaled.default)
def convert(x, meta_outputs=None):
    return torchair.ge.custom_op("MineScaled", inputs={"x": x}, outputs=["y"])

def product(x):
    return torch.ops.mine.scaled(x @ x.T) + 1  # the GE type

x, weight = torch.ones(5, 8).npu(), torch.ones(8).npu()
y = torch_npu.npu_rms_norm(x, weight)[0]  # the operator
assert y.shape == x.shape and y.isnan().all()
whole = torch.compile(product, backend=torchair.get_npu_backend(), dynamic=True)(x)
assert whole.shape == (5, 5) and whole.isnan().all()
q = torch.ones(1, 2, 16, 16, dtype=torch.float16).npu()
assert torch_npu.npu_fusion_attention(q, q, q, 2, "BNSD", sparse_mode=7)[0].shape == q.shape  # the form
graph = torch.npu.NPUGraph()
with torch.npu.graph(graph):
    captured = torch_npu.npu_rms_norm(x, weight)[0] + 1  # captured
graph.replay()
assert captured.isnan().all()
assert (x + 1).eq(2).all()
print("reached", (y + 1).sum().item())  # the value
torch.npu.stop_device(0)  # the function
"""


def surveyed(tmp_path, program, *options):
    """(exit status, stdout, stderr, findings of (kind, name, detail, text of the line))."""
    script, found = tmp_path / "program.py", tmp_path / "found.json"
    script.write_text(program)
    command = [sys.executable, "-m", "moe_graph", "survey", "--json", str(found), *options, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    return result.returncode, result.stdout, result.stderr, json.loads(found.read_text())


def at(row, program):
    """The text of the program's line of a finding of eager mode."""
    number = int(row["line"].partition(" in ")[0].rpartition(":")[2])
    return program.splitlines()[number - 1]


def test_everything_that_is_lacking_is_listed_in_one_pass(tmp_path):
    status, out, error, rows = surveyed(tmp_path, PROGRAM)
    assert status == 3, error
    assert out.split() == ["reached", "nan"]
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in survey.LACKING}
    assert {row["name"] for row in by_kind[survey.OPERATOR]} == {"npu::npu_rms_norm"}
    lines = [at(row, PROGRAM) for row in by_kind[survey.OPERATOR]]
    assert len(lines) == 2 and "# the operator" in lines[0] and "# captured" in lines[1]
    assert by_kind[survey.OPERATOR][0]["detail"] == "float32 [5, 8], float32 [8]"
    (form,) = by_kind[survey.FORM]
    assert form["name"] == "npu::npu_fusion_attention" and "sparse_mode" in form["detail"]
    (kind,) = by_kind[survey.GE_TYPE]
    assert kind["name"] == "MineScaled" and "program.py" in kind["line"] and "torch.ops.mine.scaled" in kind["line"]
    (function,) = by_kind[survey.FUNCTION]
    assert function["name"] == "aclrtDeviceTaskAbort" and "# the function" in at(function, PROGRAM)
    assert not by_kind[survey.GE_FORM]
    read = [at(row, PROGRAM) for row in rows if row["kind"] == survey.VALUE]
    assert any("# the value" in line for line in read) and not any("eq(2)" in line for line in read)
    assert "this is no run" in error and "4 are lacking; the program reached its end" in error


@pytest.mark.slow
def test_a_program_that_lacks_nothing_is_a_run(tmp_path):
    status, out, error, rows = surveyed(tmp_path, "import torch, torch_npu\nprint(torch.ones(3).npu().sum().item())")
    assert (status, out.strip(), rows) == (0, "3.0", [])
    assert "nothing is lacking" in error


def test_a_program_that_ends_early_says_so(tmp_path):
    program = (
        "import torch, torch_npu\n"
        "from moe_graph import operators\n"
        'del operators.every()["npu::npu_rms_norm"]\n'
        "x = torch_npu.npu_rms_norm(torch.ones(2, 8).npu(), torch.ones(8).npu())[0]\n"
        "raise ValueError(f'not {int(x.isnan().sum())} of these')\n"
    )
    status, _, error, rows = surveyed(tmp_path, program)
    assert status == 4 and "failed with status 1" in error
    (row,) = [row for row in rows if row["kind"] == survey.ERROR]
    assert row["name"] == "ValueError" and row["detail"] == "not 16 of these" and "raise" in at(row, program)


@pytest.mark.slow
def test_each_rank_is_surveyed(tmp_path):
    program = (
        "import os, torch, torch_npu, torch.distributed as dist\n"
        "from moe_graph import operators\n"
        'dist.init_process_group("hccl")\n'
        'if dist.get_rank():\n    del operators.every()["npu::npu_rms_norm"]\n'
        "x = torch.ones(2, 8).npu(dist.get_rank())\n"
        "x = torch.ops.npu.npu_rms_norm(x, x[0])[0]\n"
        "dist.all_reduce(x)\n"
        "assert x.isnan().all()\n"
        "dist.destroy_process_group()\n"
    )
    script = ("--devices", "2", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    status, _, error, rows = surveyed(tmp_path, program, *script)
    assert status == 3, error
    lacking = [(row["rank"], row["kind"], row["name"]) for row in rows if row["kind"] != survey.VALUE]
    assert lacking == [("1", survey.OPERATOR, "npu::npu_rms_norm")]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu]
)
def test_what_can_be_nan_is(dtype):
    assert marks.without_values(torch.zeros(3).to(dtype)).float().isnan().all()


def test_marks_follow_memory_and_end_with_it():
    tensor = torch.zeros(4)
    marks.mark([tensor])
    assert marks.are_marked(1, [tensor[1:].view(3, 1)]) and not marks.are_marked(torch.zeros(4))
    number = tensor.untyped_storage()._cdata
    del tensor
    assert marks._marked.pop(number).expired()


def test_what_is_computed_from_a_stand_in_is_marked_and_nothing_else():
    stand_in, other = torch.zeros(2), torch.zeros(2)
    marks.mark(stand_in)
    assert marks.are_marked(marks.computed(lambda: stand_in + other, stand_in, other))
    assert not marks.are_marked(marks.computed(lambda: other + 1, other))
    marks.computed(lambda: other.add_(stand_in), stand_in, written=[other])
    assert marks.are_marked(other)
