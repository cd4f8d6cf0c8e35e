"""A small Mixture-of-Experts layer spread over 2, 3, 4 and 8 ranks, eager, as a GE graph and captured, against the dense layer."""

import re
from pathlib import Path

import pytest

from expert_parallel import ranks

WORKER = Path(ranks.WORKER).with_name("layers.py")
MODES = ["eager", "ge", "captured"]
ROUTINGS = [
    "even",
    "uneven",
    "all to the first experts",
    "experts without tokens",
    "ranks without tokens",
    "nobody has tokens",
]
RUNS = {  # each a start of that many ranks
    2: [["ep 2"], ["tp 2", "dp 2"]],
    3: [["tp 3", "ep 3", "dp 3"]],
    4: [["tp 4", "ep 4", "dp 4", "ep 2 x tp 2"]],
    8: [["tp 8", "ep 8", "dp 8", "ep 4 x tp 2", "ep 2 x tp 4"]],
}
TOLERANCE = (
    1.5e-2  # of the largest value of the dense layer, which is in float32: the layer rounds to bfloat16 some five times
)
ROUNDING = 2 * 2**-8  # two, to bfloat16, of the largest value: of a rank's part, and of the sum over the ranks


@pytest.mark.parametrize(
    "size, ways",
    [
        pytest.param(size, ways, marks=[] if ways == ["ep 2"] else pytest.mark.slow, id=", ".join(ways))
        for size, runs in RUNS.items()
        for ways in runs
    ],
)
def test_every_mode_equals_the_dense_layer(size, ways):
    printed = ranks.run(WORKER, size, *ways, device="npu", timeout=1800)
    found = re.findall(r"^(.*), (\w+), (.*): (\S+) on rank (\d+)$", printed, re.MULTILINE)
    differences = {(way, mode, routing, int(rank)): float(value) for way, mode, routing, value, rank in found}
    expected = {
        (way, mode, routing, rank) for way in ways for mode in MODES for routing in ROUTINGS for rank in range(size)
    }
    assert set(differences) == expected
    assert max(differences.values()) < TOLERANCE, {
        key: value for key, value in differences.items() if value >= TOLERANCE
    }
    for (way, mode, routing, rank), value in differences.items():  # padded, a product may add in another order
        assert abs(value - differences[way, "eager", routing, rank]) < ROUNDING, (way, mode, routing, rank)
    # One graph, and one capture, for every number of tokens.
    found = re.findall(r"^(.*), (\w+): (\d+) graphs, (\d+) captures on rank \d+$", printed, re.MULTILINE)
    counts = {"eager": ("0", "0"), "ge": ("1", "0"), "captured": ("1", "1")}
    assert sorted(found) == sorted((way, mode, *counts[mode]) for way in ways for mode in MODES for _ in range(size))
