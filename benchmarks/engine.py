"""The host graph engine against eager PyTorch: a transformer block with an MoE layer, on the simulated device.

    python benchmarks/engine.py [--tokens A] [--hidden H] [--dtype T] [--rounds N]

Prints the ratio of the engine's run of the lowered graph, and of the whole compiled call, to eager PyTorch on the CPU in the same run,
and the nodes the engine spends most of its time in.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import moe_graph.simulator  # isort: skip  first: it starts the device
import torch
import torchair
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from moe_block import Block  # noqa: E402


def seconds(function, rounds):
    """Median seconds of some calls, and the last call's result."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="token copies that are routed: A = 4 * S * 2 (4096)")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    block = Block(hidden=options.hidden, inner=2 * options.hidden).to(dtype).requires_grad_(False)
    x = torch.randn(4, options.tokens // 8, options.hidden).to(dtype)
    on_device, x_on_device = copy.deepcopy(block).npu(), x.npu()
    # Eager comes first and alone: where the CPU has no fast kernel for half types it takes minutes, the engine seconds.
    eager, expected = seconds(lambda: block(x), options.rounds)

    table = Table("graph", "eager ms", "engine ms", "engine / eager", "whole call / eager")
    table.title = f"x {tuple(x.shape)}, {options.dtype}, A = {options.tokens}"
    for dynamic in (False, True):
        torch._dynamo.reset()
        backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
        compiled = torch.compile(on_device, backend=backend, dynamic=dynamic, fullgraph=True)
        torch.testing.assert_close(compiled(x_on_device).cpu(), expected, rtol=3e-2, atol=3e-2)
        inside = []

        def call(compiled=compiled, inside=inside):
            with moe_graph.trace() as record:
                result = compiled(x_on_device)
                torch.npu.synchronize()
            inside.append(sum(node.duration for node in record.nodes))
            return record, result

        whole, (record, _) = seconds(call, options.rounds)
        engine = statistics.median(inside)
        table.add_row(
            "dynamic" if dynamic else "static",
            *(f"{value * 1e3:.0f}" for value in (eager, engine)),
            f"{engine / eager:.2f}",
            f"{whole / eager:.2f}",
        )
    Console().print(table)
    times = {}
    for node in record.nodes:
        times[node.type] = times.get(node.type, 0) + node.duration
    slowest = sorted(times.items(), key=lambda item: -item[1])[:5]
    print("slowest types:", ", ".join(f"{name} {value * 1e3:.0f} ms" for name, value in slowest))


if __name__ == "__main__":
    main()
