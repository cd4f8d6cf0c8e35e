"""What a plan predicts from shapes is what the simulated device counts while the graph runs."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import moe_graph
from expert_parallel import ranks
from moe_graph.planning import communication, fakes, ge, lowering, rehearsal
from moe_graph.simulator.communication import lone_rank
from planning import collectives, models

TESTS = Path(__file__).parents[1]
MODELS = models.inputs()


QUICK = ("residual", "experts")
EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]


@pytest.fixture(scope="module")
def counted(request):
    """Peaks in bytes that the allocator and the engine counted, in a process of its own that the planner is not imported in."""
    tests = [item for item in request.session.items if "counted" in item.fixturenames]
    names = sorted({item.callspec.params["name"] for item in tests if "name" in getattr(item, "callspec", item).params})
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(TESTS / "planning" / "counted.py"), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def lowered(name, mode):
    """The graph of a model, lowered from shapes."""
    model, arguments = MODELS[name]
    (graph,), _ = lowering.lower(model, [[one.to("meta") for one in arguments]], mode=mode)
    return graph


def rehearsed(graph, edit=None):
    module = copy.deepcopy(graph.module)
    if edit is not None:
        edit(module)
    return rehearsal.rehearse(module, graph.inputs, fakes.fake_mode(graph.inputs), graph.source_lines)


@pytest.mark.parametrize("name", EACH)
def test_peak_of_a_captured_graph_and_its_edits_is_what_the_allocator_was_asked_for(name, counted):
    for edit, change in models.EDITS.items():
        found = rehearsed(lowered(name, "reduce-overhead"), change)
        assert found.peak == counted["captured"][f"{name} {edit}".strip()]
        assert sum(size for _, size in found.at_peak) == found.peak
        assert max(step.live for step in found.steps) == found.peak


@pytest.mark.parametrize("name", EACH)
def test_peak_of_a_graph_of_ge_is_what_the_engine_holds(name, counted):
    graph = lowered(name, "max-autotune")
    found = ge.rehearse(graph.definition, graph.ge_inputs, rehearsed(graph), graph.source_lines)
    assert found.peak == counted["ge"][name]
    assert sum(size for _, size in found.at_peak) == found.peak


# "experts" and "residual" have operators of torch_npu.
@pytest.mark.parametrize("name", [one for one in EACH if one.values[0] not in ("experts", "residual")])
def test_operations_are_those_of_torch(name):
    model, arguments = MODELS[name]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*arguments)
    for mode in ("max-autotune", "reduce-overhead"):
        assert sum(step.flops for step in rehearsed(lowered(name, mode)).steps) == counter.get_total_flops()


def test_operations_of_grouped_products():
    steps = rehearsed(lowered("experts", "reduce-overhead")).steps
    assert [step.flops for step in steps if step.flops] == [2 * 24 * 64 * 64, 2 * 24 * 32 * 64]
    assert all(step.flops_are_bound for step in steps if step.flops)


def test_operations_of_a_graph_of_ge_are_those_of_its_fx_graph():
    for name in QUICK:
        graph = lowered(name, "max-autotune")
        of_fx = rehearsed(graph)
        of_ge = ge.rehearse(graph.definition, graph.ge_inputs, of_fx, graph.source_lines)
        assert sum(step.flops for step in of_ge.steps) == sum(step.flops for step in of_fx.steps)
        products = [{(step.dtype, step.flops) for step in run.steps if step.flops} for run in (of_ge, of_fx)]
        assert products[0] == products[1] and "" not in dict(products[0])


def test_bytes_of_a_product_and_of_a_lookup():
    steps = {step.type: step for step in rehearsed(lowered("embedding", "reduce-overhead")).steps}
    lookup = steps["aten.embedding.default"]
    assert (lookup.read, lookup.written) == (24 * 64 * 2 + 24 * 8, 24 * 64 * 2)  # 24 rows of the table of 500
    product = next(step for kind, step in steps.items() if "mm" in kind or "matmul" in kind)
    assert (product.read, product.written) == (2 * (24 * 64 + 500 * 64), 2 * 24 * 500)


def test_a_buffer_that_is_written_is_known():
    for mode in ("max-autotune", "reduce-overhead"):
        graph = lowered("cache", mode)
        (written,) = rehearsed(graph).written_inputs
        assert graph.inputs[written].shape == (32, 64)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead"])
def test_bytes_of_collectives_are_those_that_hccl_counted(mode, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    worker = TESTS / "simulated" / "workers" / "counted_collectives.py"
    printed = ranks.run(worker, 2, device="npu")
    for rank in range(2):
        with lone_rank.alone(2, rank):
            torch.distributed.init_process_group("hccl")
            plan = moe_graph.plan(collectives.program, torch.empty(8, 6, device="meta"), mode=mode)
        (found,) = communication.by_group(plan.messages).values()
        line = next(line for line in printed.splitlines() if line.startswith(f"counted {rank} "))
        assert json.loads(line.split(" ", 2)[2]) == {name: list(counts) for name, counts in found.items()}
