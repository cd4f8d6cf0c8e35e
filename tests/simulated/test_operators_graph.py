"""torch's own samples of its operators, compiled by torchair and run on the host engine, against eager PyTorch on the CPU."""

import json
from pathlib import Path

import opinfo_graph as walker
import pytest
import torch

import opinfo
from moe_graph.converters import known
from versions import need_torch

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, of samples that are deprecated or odd on purpose

RECORDED = json.loads(walker.RECORD.read_text())
of_this_torch = pytest.mark.skipif(
    torch.__version__.partition("+")[0] != RECORDED["torch"], reason=f"recorded with torch {RECORDED['torch']}"
)


def named(*names):
    return [op for op in opinfo.operators() if opinfo.name_of(op) in names]


def test_the_engine_lacks_nothing_that_was_walked():
    kinds = walker.kinds(RECORDED)
    assert kinds and not [RECORDED[kind][walker.ENGINE] for kind in kinds if walker.ENGINE in RECORDED[kind]]
    told = {entry.what for entry in known.KNOWN}
    assert {reason for kind in kinds for reason in RECORDED[kind].get(walker.KNOWN, {}).values()} <= told


def test_a_slice_of_torchs_operators():
    need_torch(2, 9)
    outcomes = [o for op in opinfo.operators(every=60, first=7) for o in walker.walk(op, samples=1)]
    assert len(outcomes) > 40
    assert not [o for o in outcomes if o.outcome == walker.ENGINE]


@of_this_torch
def test_each_class_is_told_from_the_others(monkeypatch):
    operators = named("expm1", "std", "cummax")
    outcomes = [o for op in operators for o in walker.walk(op, (torch.float32,), dynamic=(False,))]
    assert {o.operator: o.outcome for o in outcomes} == {
        "expm1": walker.AGREES,
        "std": walker.KNOWN,
        "cummax": walker.NOT_LOWERED,
    }
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compile_(lambda *a: f(*a) * 1.001, **how))
    (wrong,) = walker.walk(*named("expm1"), (torch.float32,), 1, (False,))
    assert wrong.outcome == walker.ENGINE and "not close" in wrong.message


@pytest.mark.slow
@of_this_torch
def test_the_whole_walk():
    for kind in walker.kinds(RECORDED):
        dtype, shapes = kind.split()
        recorded = {name: outcome for outcome, names in RECORDED[kind].items() for name in names}
        found = {
            o.operator: o.outcome
            for op in named(*recorded)
            for o in walker.walk(
                op, (getattr(torch, dtype),), walker.samples_of(RECORDED, kind), (shapes == "dynamic",)
            )
        }
        assert found == recorded


def test_the_table_stands_in_the_documents():
    page = (Path(__file__).parents[2] / "docs" / "graph_mode.md").read_text()
    assert "\n".join(walker.table(RECORDED)) in page
