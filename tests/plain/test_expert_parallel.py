"""The expert-parallel layer of examples/ep_moe.py on CPU tensors, over gloo processes."""

import re

import pytest

from expert_parallel import ranks

EXACT = 1e-5  # float32, to the last bits


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_equals_the_dense_layer(size):
    """Even and skewed routing, a rank without tokens, ranks that receive none, int8 with scales."""
    output = ranks.run(ranks.EXAMPLE, size, "--dtype", "float32", device="cpu")
    differences = re.findall(r"  (.*), eager: differs from the dense layer by (\S+)", output)
    assert [name for name, _ in differences] == ["even", "skewed", "a rank without tokens", "int8", "int8, skewed"]
    for name, difference in differences:
        assert float(difference) <= (2e-2 if "int8" in name else EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_gradients_equal_the_dense_layers(size):
    output = ranks.run(ranks.WORKER, size, "gradients", device="cpu")
    assert output.count(": ok") == size


@pytest.mark.slow
def test_a_lost_rank_is_an_error_of_the_others_soon():
    output = ranks.run(ranks.WORKER, 3, "lost", device="cpu", fails=True, timeout=120)
    errors = re.findall(r"rank (\d): error after (\S+) s: (.*)", output)
    assert errors and all(int(rank) < 2 and float(seconds) < 70 for rank, seconds, _ in errors)
    assert all("onnection" in message or "imed out" in message for _, _, message in errors)
    assert ": ok" not in output


@pytest.mark.slow
def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "routing.png"
    output = ranks.run(ranks.EXAMPLE, 2, "--scenario", "skewed", "--picture", path, device="cpu")
    assert f"routing drawn in {path}" in output.replace("\n", "")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
