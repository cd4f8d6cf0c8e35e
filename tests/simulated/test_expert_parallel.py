"""The expert-parallel layer of examples/ep_moe.py on the simulated device, over hccl."""

import re

import pytest

from expert_parallel import ranks


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_equals_the_dense_layer_eager_and_compiled(size):
    output = ranks.run(ranks.EXAMPLE, size, device="npu")
    differences = re.findall(r"  (.*), (eager|compiled): differs from the dense layer by (\S+)", output)
    assert len(differences) == 10
    for (name, _, eager), (other, _, compiled) in zip(differences[::2], differences[1::2]):
        assert name == other and float(eager) == float(compiled) <= 2e-2


@pytest.mark.slow
def test_one_graph_serves_every_token_count():
    assert ranks.run(ranks.WORKER, 2, "one_graph", device="npu").count(": ok") == 2


@pytest.mark.slow
def test_a_lost_rank_is_an_error_of_the_others_soon():
    output = ranks.run(ranks.WORKER, 3, "lost", device="npu", fails=True, timeout=120)
    errors = re.findall(r"rank (\d): error after (\S+) s: (.*)", output)
    assert errors and all(int(rank) < 2 and float(seconds) < 70 for rank, seconds, _ in errors)
    assert ": ok" not in output


def test_a_prefill_function_of_public_models_runs_unchanged():
    output = ranks.run(ranks.WORKER.parent / "prefill.py", 2, device="npu")
    found = re.findall(r"rank (\d): \((\d+), 32\) on npu:(\d), differs by (\S+)", output)
    assert sorted(rank for rank, *_ in found) == ["0", "1"]
    for rank, count, device, difference in found:
        assert rank == device and int(count) == 11 + 7 * int(rank) and float(difference) < 5e-2
