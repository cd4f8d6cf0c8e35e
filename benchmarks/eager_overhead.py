"""What a call of an operator on the simulated device costs beside the same call on CPU tensors.

    python benchmarks/eager_overhead.py [--quick]

The kernels are the CPU's own: the difference is torch_npu's dispatch, the path of the simulated device, and its allocator.
"""

from __future__ import annotations

import moe_graph.simulator  # noqa: F401  isort: skip  first: it starts the device

from collections.abc import Callable, Iterator

import measure
import torch

SIZES = (16, 256, 1024)
IN_PLACE = ("add_", "view", "add, out=", "mul_ by a number")


def calls(device: str, size: int) -> dict[str, Callable[[], object]]:
    """Operators on square float32 matrices, by name."""
    x = torch.randn(size, size).to(device)
    out, index, zeros = torch.empty_like(x), torch.arange(size, device=device), torch.zeros_like(x)
    return {
        "add": lambda: x + x,
        "matmul": lambda: x @ x,
        "index_select": lambda: x.index_select(0, index),
        "sum": lambda: x.sum(),
        "softmax": lambda: x.softmax(-1),
        "add, out=": lambda: torch.add(x, x, out=out),
        "add_": lambda: x.add_(zeros),
        "mul_ by a number": lambda: x.mul_(1.0),
        "view": lambda: x.view(-1),
    }


def rows() -> Iterator[measure.Row]:
    """Microseconds more for small tensors, where the way is all there is; ratios for larger ones."""
    for size in SIZES:
        both = {(name, device): call for device in ("npu", "cpu") for name, call in calls(device, size).items()}
        times = measure.times(both)
        for name in calls("cpu", 1):
            npu, cpu = (name, "npu"), (name, "cpu")
            what = f"eager on the device, {name}, {size} x {size}"
            if size == SIZES[0]:
                detail = f"{measure.shown(times.median(npu))} - {measure.shown(times.median(cpu))}"
                limit = 3.0 if name in IN_PLACE else 6.0
                yield measure.Row(what, times.more(npu, cpu) * 1e6, "us", limit, detail)
            else:
                yield times.row(what, npu, cpu)


if __name__ == "__main__":
    measure.main("eager operators on the simulated device against CPU tensors", rows)
