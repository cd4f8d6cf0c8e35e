"""How time and memory grow: the operator by tokens and by chunks, compiling by nodes, tools of dumps by nodes. Curves in docs/images.

    python benchmarks/growth.py [--nodes N] [--compiled N] [--picture FILE]        the picture needs matplotlib

Each curve is one quantity at doubled sizes; its slope between the last two sizes (1 is linear) stands in the legend and in the table.
"""

from __future__ import annotations

import moe_graph.simulator  # noqa: F401  isort: skip  first: it starts the device

import argparse
import math
import statistics
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torchair
from peers import make
from rich.console import Console
from rich.table import Table

from moe_graph.dumps.diff import diff
from moe_graph.dumps.model import Graph
from moe_graph.dumps.summary import summarise

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import pictures  # noqa: E402

Curve = list[tuple[int, float, float]]
"""(size, seconds, bytes at the peak; 0 where memory is not measured)"""


def seconds(call: Callable[[], object], rounds: int) -> float:
    """The median processor time of a call."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def by_tokens(exponents: range) -> Curve:
    """A tokens of H 8 to 16 x 16 chunks."""
    curve = []
    for exponent in exponents:
        tokens, counts, _ = make(2**exponent, 8, 16, 16, torch.int8)
        curve.append((2**exponent, seconds(lambda t=tokens, c=counts: moe_graph.moe_re_routing(t, c), 5), 0.0))
    return curve


def by_chunks(exponents: range) -> Curve:
    """65,536 tokens to 2^n chunks of 16 ranks."""
    curve = []
    for exponent in exponents:
        tokens, counts, _ = make(65536, 8, 16, 2 ** (exponent - 4), torch.int8)
        curve.append((2**exponent, seconds(lambda t=tokens, c=counts: moe_graph.moe_re_routing(t, c), 5), 0.0))
    return curve


def of_dumps(call: Callable[[Graph], object], sizes: list[int]) -> Curve:
    """A tool of dumps on a stack of MoE layers. Memory by tracemalloc, in a call of its own: it slows Python down."""
    curve = []
    for size in sizes:
        graph = pictures.layers(size // 25)
        taken = seconds(lambda graph=graph: call(graph), 3)
        tracemalloc.start()
        call(graph)
        curve.append((len(graph.nodes), taken, float(tracemalloc.get_traced_memory()[1])))
        tracemalloc.stop()
    return curve


def with_changes(graph: Graph) -> object:
    """diff to the same graph with a hundredth of its nodes changed."""
    nodes = [
        replace(node, attributes={**node.attributes, "new": 1}) if at % 100 == 50 and node.inputs else node
        for at, node in enumerate(graph.nodes)
    ]
    return diff(graph, replace(graph, nodes=tuple(nodes)))


def compiling(sizes: list[int]) -> Curve:
    """Lowering and the first run of a chain of operators, Dynamo and all."""
    backend, curve = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig()), []
    x = torch.ones(4).npu()
    for size in sizes:
        torch._dynamo.reset()

        def chain(x, size=size):
            for at in range(size):
                x = x + at
            return x

        compiled = torch.compile(chain, backend=backend, dynamic=False, fullgraph=True)
        curve.append((size, seconds(lambda compiled=compiled: compiled(x), 1), 0.0))
    return curve


def slope(curve: Curve, value: int) -> float:
    """The exponent of the growth over the last part of a curve in which the size grows at least four times."""
    first = next(point for point in reversed(curve[:-1]) if point[0] * 4 <= curve[-1][0] or point is curve[0])
    return math.log(curve[-1][value] / first[value]) / math.log(curve[-1][0] / first[0])


def draw(curves: dict[str, Curve], file: str) -> None:
    """Time and memory against size, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 6), layout="constrained")
    for axis, value, what in ((axes[0], 1, "seconds"), (axes[1], 2, "bytes at the peak")):
        for name, curve in curves.items():
            if curve[-1][value]:
                label = f"{name} (slope {slope(curve, value):.2f})"
                axis.loglog([point[0] for point in curve], [point[value] for point in curve], marker=".", label=label)
        axis.set(xlabel="tokens, chunks or nodes", ylabel=what)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(file, dpi=90)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=50000, help="of the largest dump")
    parser.add_argument("--compiled", type=int, default=1000, help="operators of the largest graph that is compiled")
    parser.add_argument("--picture", metavar="FILE", help="draw the curves into this PNG")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    nodes = [size for size in (500, 2000, 8000, 20000, 50000) if size <= options.nodes]
    operators = [size for size in (10, 30, 100, 300, 1000, 3000, 10000) if size <= options.compiled]
    curves = {
        "re-routing, tokens": by_tokens(range(3, 23)),
        "re-routing, chunks": by_chunks(range(4, 21)),
        "inspect (summary), nodes": of_dumps(summarise, nodes),
        "diff, 1 % changed, nodes": of_dumps(with_changes, nodes),
        "compile and first run, nodes": compiling(operators),
    }
    table = Table("what", "largest size", "seconds", "slope", "MB at the peak", "slope")
    for name, curve in curves.items():
        size, taken, peak = curve[-1]
        memory = (f"{peak / 1e6:.0f}", f"{slope(curve, 2):.2f}") if peak else ("", "")
        table.add_row(name, f"{size:,}", f"{taken:.3g}", f"{slope(curve, 1):.2f}", *memory)
    Console().print(table)
    if options.picture:
        draw(curves, options.picture)


if __name__ == "__main__":
    main()
