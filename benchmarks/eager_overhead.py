"""What a call of an operator on the simulated device costs beside the same call on CPU tensors, in one run.

    python benchmarks/eager_overhead.py

The kernels are the CPU's own: the difference is torch_npu's dispatch, the path of the simulated device, and its allocator.
"""

import moe_graph.simulator  # noqa: F401  isort: skip  first: it starts the device

import torch
from re_routing import seconds
from rich.console import Console
from rich.table import Table

SIZES = (16, 256, 1024)


def calls(device, size):
    """Operators on square float32 matrices, by name."""
    x = torch.randn(size, size).to(device)
    out, index = torch.empty_like(x), torch.arange(size, device=device)
    return {
        "add": lambda: x + x,
        "add, out=": lambda: torch.add(x, x, out=out),
        "matmul": lambda: x @ x,
        "index_select": lambda: x.index_select(0, index),
        "view": lambda: x.view(-1),
        "sum": lambda: x.sum(),
    }


def main():
    table = Table("operator", "size", "npu us", "cpu us", "more us", "ratio", title="float32, [size, size]")
    for size in SIZES:
        both = {(name, device): call for device in ("npu", "cpu") for name, call in calls(device, size).items()}
        times = seconds(both, 30)
        for name in calls("cpu", 1):
            npu, cpu = times[name, "npu"] * 1e6, times[name, "cpu"] * 1e6
            table.add_row(name, str(size), f"{npu:.1f}", f"{cpu:.1f}", f"{npu - cpu:.1f}", f"{npu / cpu:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
