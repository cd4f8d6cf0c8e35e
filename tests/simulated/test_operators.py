"""torch's own samples of its operators, on NPU tensors and on the CPU, and who serves what torch_npu registers."""

import json

import pytest
import torch

import opinfo
from moe_graph.simulator.eager import install as eager
from versions import need_torch

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, of samples that are deprecated or odd on purpose

RECORDED = json.loads(opinfo.RECORD.read_text())
of_this_torch = pytest.mark.skipif(
    torch.__version__.partition("+")[0] != RECORDED["torch"], reason=f"recorded with torch {RECORDED['torch']}"
)


def not_passing(outcomes):
    return sorted([o.operator, o.dtype, o.outcome, o.message] for o in outcomes if o.outcome != opinfo.PASS)


def test_a_slice_of_torchs_operators():
    need_torch(2, 9)
    outcomes = [outcome for op in opinfo.operators(every=23, first=5) for outcome in opinfo.walk(op, samples=8)]
    assert len(outcomes) > 80 and sum(o.samples for o in outcomes) > 300
    assert not [o for o in outcomes if o.outcome == opinfo.FAILING]
    known = {(operator, dtype) for operator, dtype, *_ in RECORDED["not passing"]}
    assert {(operator, dtype) for operator, dtype, *_ in not_passing(outcomes)} <= known


@pytest.mark.slow
@of_this_torch
def test_the_whole_walk():
    outcomes = [outcome for op in opinfo.operators() for outcome in opinfo.walk(op)]
    assert not_passing(outcomes) == RECORDED["not passing"]
    assert json.loads(json.dumps(opinfo.record(outcomes))) == RECORDED


def test_the_walk_tells_a_wrong_result(monkeypatch):
    """The comparison is not blind: a kernel that is off by a little, in values or in gradients, fails."""
    (op,) = [op for op in opinfo.operators() if opinfo.name_of(op) == "expm1"]
    (passing,) = opinfo.walk(op, (torch.float32,), 4)
    assert passing.outcome == opinfo.PASS and passing.samples
    original = opinfo._run

    def off(op, sample, gradients):
        found = original(op, sample, gradients)
        on_device = opinfo._flat(found)[0].is_npu
        return [found[0] * (1.001 if on_device else 1), found[1]]

    monkeypatch.setattr(opinfo, "_run", off)
    (failing,) = opinfo.walk(op, (torch.float32,), 4)
    assert failing.outcome == opinfo.FAILING and "not close" in failing.message


def test_every_operator_of_aten_that_torch_npu_registers_is_served():
    coverage = eager.coverage()
    aten = {name: by for name, by in coverage.items() if name.startswith("aten::")}
    assert len(aten) > 1000
    # The CPU has no kernels for these (of those that this torch has), and nothing here computes them yet.
    assert {name for name, by in aten.items() if not by} <= {
        "aten::to_padded_tensor",
        "aten::_scaled_grouped_mm",
        "aten::_scaled_grouped_mm_v2",
        "aten::_scaled_mm",
        "aten::_scaled_mm_v2",
        "aten::_thnn_fused_gru_cell",
    }
