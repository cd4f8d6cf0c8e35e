"""Compiling a graph of some 1,500 nodes with torchair's backend on the simulated device: whose share of the time is whose.

    python benchmarks/compile_share.py [--quick]

By a profile: time in a function counts for the package that it belongs to, time in C for the package that calls it.
"""

from __future__ import annotations

import moe_graph.simulator  # noqa: F401  isort: skip  first: it starts the device

import cProfile
import pstats
import time
import warnings
from collections import Counter
from collections.abc import Iterator

import measure
import torch
import torchair

OPERATORS = 1500
OURS = "moe_graph"
_OWNERS = (("/torch_npu/", "torch_npu and torchair"), ("/torch/", "torch"), ("/sympy/", "torch"), ("/moe_graph/", OURS))


def _owner(file: str) -> str | None:
    if "/converters/" in file and "/torch" not in file or "/meta/" in file and "/torch" not in file:
        return OURS
    return next((owner for part, owner in _OWNERS if part in file), None if file == "~" else "the rest")


def shares(profile: cProfile.Profile) -> Counter[str]:
    """Seconds of each owner."""
    found: Counter[str] = Counter()
    for (file, _, _), (_, _, own, _, callers) in pstats.Stats(profile).stats.items():
        owner = _owner(file)
        if owner is not None:
            found[owner] += own
            continue
        for (caller, _, _), (_, _, by_caller, _) in callers.items():
            found[_owner(caller) or "the rest"] += by_caller
    return found


def chain(x, w):
    """Products, sums and activations, one on the other."""
    for at in range(OPERATORS // 5):
        x = torch.nn.functional.silu(x @ w + at) * 0.5 + x
    return x


def rows() -> Iterator[measure.Row]:
    """A row for each owner; of ours the limit."""
    warnings.simplefilter("ignore")
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    x, w = torch.randn(4, 16).npu(), torch.randn(16, 16).npu()
    torch.compile(lambda x: x + 1, backend=backend, dynamic=False)(x)  # what is imported at first use is no compiling
    profile = cProfile.Profile(time.process_time)
    profile.enable()
    torch.compile(chain, backend=backend, dynamic=False, fullgraph=True)(x, w)
    profile.disable()
    found = shares(profile)
    total = sum(found.values())
    for owner, seconds in found.most_common():
        limit = 10.0 if owner == OURS else None
        yield measure.Row(
            f"compile of {OPERATORS} nodes, share of {owner}", seconds / total * 100, "%", limit, measure.shown(seconds)
        )


if __name__ == "__main__":
    measure.main("compile of a large graph: shares", rows)
