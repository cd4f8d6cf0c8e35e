"""Collectives inside compiled graphs, on 2 and 3 ranks."""

from pathlib import Path

import pytest

from expert_parallel import ranks

WORKER = Path(__file__).parent / "workers" / "graph_collectives.py"
COMMON = [
    "all_reduce sum",
    "all_reduce sum dynamic",
    "all_reduce max",
    "all_reduce bfloat16",
    "all_gather_into_tensor",
    "all_gather",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "all_to_all_single uneven",
    "broadcast",
    "two groups",
    "in order",
]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_each_collective_gives_what_the_ranks_hold(size):
    printed = ranks.run(WORKER, size, device="npu")
    names = [*COMMON, "send and recv"] if size % 2 == 0 else COMMON
    missing = [f"{name} {rank}" for name in names for rank in range(size) if f"equal {name} {rank}\n" not in printed]
    assert not missing, printed[-3000:]
