"""The host graph engine against eager PyTorch: a transformer block with an MoE layer, bfloat16, on the simulated device.

    python benchmarks/engine.py [--tokens A] [--hidden H] [--rounds N]

Prints the ratio of the engine's run of the lowered graph, and of the whole compiled call, to eager PyTorch on the CPU in the same run,
and the nodes the engine spends most of its time in.
"""

from __future__ import annotations

import argparse
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


def seconds(functions, rounds):
    """Median seconds of each function; the functions take turns, so that all see the same machine."""
    taken = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="token copies that are routed: A = 4 * S * 2 (4096)")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    torch.manual_seed(0)
    block = Block(hidden=options.hidden, inner=2 * options.hidden).to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(4, options.tokens // 8, options.hidden).bfloat16()
    on_device, x_on_device = Block(hidden=options.hidden, inner=2 * options.hidden).to(torch.bfloat16), x.npu()
    on_device.load_state_dict(block.state_dict())
    on_device = on_device.requires_grad_(False).npu()

    table = Table(
        "graph", "eager ms", "engine ms", "engine / eager", "whole call / eager", title=f"x {tuple(x.shape)}, bfloat16"
    )
    for dynamic in (False, True):
        torch._dynamo.reset()
        backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
        compiled = torch.compile(on_device, backend=backend, dynamic=dynamic, fullgraph=True)
        with moe_graph.trace() as record:
            torch.testing.assert_close(compiled(x_on_device).cpu(), block(x), rtol=3e-2, atol=3e-2)

        def call(compiled=compiled):
            compiled(x_on_device)
            torch.npu.synchronize()

        engine = []

        def traced(call=call, engine=engine):
            with moe_graph.trace() as run:
                call()
            engine.append(sum(node.duration for node in run.nodes))

        taken = seconds({"eager": lambda: block(x), "call": call, "traced": traced}, options.rounds)
        eager, inside = taken["eager"], statistics.median(engine)
        table.add_row(
            "dynamic" if dynamic else "static",
            *(f"{value * 1e3:.0f}" for value in (eager, inside)),
            f"{inside / eager:.2f}",
            f"{taken['call'] / eager:.2f}",
        )
    Console().print(table)
    times = {}
    for node in record.nodes:
        times[node.type] = times.get(node.type, 0) + node.duration
    slowest = sorted(times.items(), key=lambda item: -item[1])[:5]
    print("slowest types:", ", ".join(f"{name} {value * 1e3:.0f} ms" for name, value in slowest))


if __name__ == "__main__":
    main()
