"""The tests notice: each wrong line put into the operator's core makes the named tests fail.

A copy of the package is changed and tested in a process of its own. The table is chosen by hand: a line of each idea of the core.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Mutation(NamedTuple):
    """In `file`, `old` becomes `new`; `test` must fail then."""

    file: str
    old: str
    new: str
    test: str


RANDOM = "plain/test_fallback.py::test_matches_the_reference"
META = "plain/test_fake.py::test_meta_agrees_with_the_fallback"
COMPOSED = "simulated/test_graph_mode.py::test_composed_lowering"
MUTATIONS = {
    "no fallback registered": Mutation(
        "moe_graph/registration/register.py", '"CompositeExplicitAutograd": fallback.re_routing,', "", RANDOM
    ),
    "no fake implementation registered": Mutation(
        "moe_graph/registration/register.py",
        '"Meta": fake_re_routing,',
        "",
        "plain/test_registration.py::test_status_names_who_provides_what",
    ),
    "no autograd registered": Mutation(
        "moe_graph/registration/register.py", '"Autograd": autograd.re_routing,', "", "plain/test_autograd.py"
    ),
    "no converter installed": Mutation(
        "converters/__init__.py",
        "if not torchair_is_loaded()",
        "if True or not torchair_is_loaded()",
        "simulated/test_graph_mode.py",
    ),
    "index off by one": Mutation(
        "moe_graph/re_routing/index.py", "torch.arange(num_tokens,", "torch.arange(1, num_tokens + 1,", RANDOM
    ),
    "chunks not transposed": Mutation(
        "moe_graph/re_routing/index.py", "counts.t().contiguous().view(-1)", "counts.reshape(-1)", RANDOM
    ),
    "scatter is gather": Mutation(
        "moe_graph/re_routing/index.py",
        "gather_index(expert_token_num_per_rank.t(), num_tokens)",
        "gather_index(expert_token_num_per_rank, num_tokens)",
        RANDOM,
    ),
    "cumsum and count swapped": Mutation(
        "moe_graph/foundation/contract.py", "CUMSUM, COUNT = 0, 1", "CUMSUM, COUNT = 1, 0", RANDOM
    ),
    "gather and scatter swapped": Mutation(
        "moe_graph/foundation/contract.py", "GATHER, SCATTER = 0, 1", "GATHER, SCATTER = 1, 0", RANDOM
    ),
    "gradient by the same counts": Mutation(
        "moe_graph/re_routing/autograd.py",
        "_move(grad_tokens, counts.t().contiguous(), grad_scales)",
        "_move(grad_tokens, counts, grad_scales)",
        "plain/test_autograd.py",
    ),
    "scales not moved": Mutation(
        "moe_graph/re_routing/fallback.py",
        "permute_scales = take_rows(scales, gather, out_scales)",
        "permute_scales = scales.clone()",
        RANDOM,
    ),
    "fake index one longer": Mutation(
        "meta/moe_re_routing.py",
        "(num_tokens,), dtype=contract.INDEX_DTYPE",
        "(num_tokens + 1,), dtype=contract.INDEX_DTYPE",
        META,
    ),
    "counts of another sum accepted": Mutation(
        "moe_graph/foundation/validation.py", "if total != num_tokens:", "if False:", "plain/test_fallback.py"
    ),
    "idx_type of the node swapped": Mutation(
        "converters/moe_re_routing.py",
        "expert_token_num_type=contract.COUNT, idx_type=idx_type)",
        "expert_token_num_type=contract.COUNT, idx_type=1 - idx_type)",
        "simulated/test_graph_mode.py",
    ),
    "cumsum not composed": Mutation("converters/moe_re_routing.py", "if lacks.cumsum:", "if False:", COMPOSED),
    "scatter index not composed": Mutation(
        "converters/moe_re_routing.py", "if idx_type != node_idx_type:", "if False:", COMPOSED
    ),
}


@pytest.fixture
def copied(tmp_path):
    """A copy of the package, as it is installed."""
    package = tmp_path / "moe_graph"
    shutil.copytree(ROOT / "moe_graph", package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("converters", "meta"):
        shutil.copytree(ROOT / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_it_changes_is_there_once(name):
    mutation = MUTATIONS[name]
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1


@pytest.mark.slow
@pytest.mark.parametrize("test", sorted({mutation.test for mutation in MUTATIONS.values()}))
def test_an_unchanged_copy_passes(test, copied):
    assert run(copied, test) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_is_noticed(name, copied):
    mutation = MUTATIONS[name]
    file = copied / mutation.file if mutation.file.startswith("moe_graph/") else copied / "moe_graph" / mutation.file
    file.write_text(file.read_text().replace(mutation.old, mutation.new))
    assert run(copied, mutation.test) == 1  # tests failed; another code would be an error of pytest's own


def run(folder: Path, test: str) -> int:
    """pytest's exit code for the tests with the package of this folder, where it starts: Python finds what lies there first."""
    plugin = ["-p", "moe_graph.simulator.pytest_plugin"] if test.startswith("simulated") else []
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *plugin,
        str(ROOT / "tests" / test),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, capture_output=True, cwd=folder, env=environment, timeout=500).returncode
