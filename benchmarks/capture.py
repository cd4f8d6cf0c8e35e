"""What a replay of a captured graph costs beside the same launches one by one, on the simulated device, in one run.

    python benchmarks/capture.py [--quick]

Eager pays for torch's dispatch, torch_npu's allocator and a Python call for each launch, a replay for the kernels alone: the ratio must
stay at 1 or below. A decode step of a small transformer layer, and chains of one operator.
"""

import moe_graph.simulator  # noqa: F401  isort: skip  first: it starts the device

from collections.abc import Iterator

import measure
import torch


def chain(size, function, length=20):
    x = torch.randn(size, size).npu()

    def run():
        y = x
        for _ in range(length):
            y = function(y)
        return y

    return run


def layer(batch, hidden):
    x = torch.randn(batch, hidden).npu()
    w = [torch.randn(hidden, 3 * hidden).npu(), torch.randn(hidden, hidden).npu(), torch.randn(hidden, hidden).npu()]
    cache, slots = torch.zeros(64, hidden).npu(), torch.arange(batch).npu()

    def run():
        q, k, v = (torch.nn.functional.layer_norm(x, (hidden,)) @ w[0]).chunk(3, -1)
        cache.index_copy_(0, slots, k)
        scores = torch.softmax(q @ cache.t() * hidden**-0.5, -1)
        y = x + (scores @ cache) @ w[1]
        y = y + torch.nn.functional.silu(y @ w[2]).view(batch, 2, -1).transpose(0, 1).reshape(batch, -1)
        return y * v.sigmoid()

    return run


PROGRAMS = {
    "20 x add, [16, 16]": lambda: chain(16, lambda y: y + 1),
    "20 x add, [512, 512]": lambda: chain(512, lambda y: y + 1),
    "20 x mul_, [16, 16]": lambda: chain(16, lambda y: y.mul_(1.0)),
    "20 x matmul, [128, 128]": lambda: chain(128, lambda y: (y @ y).tanh()),
    "20 x view and sum": lambda: chain(64, lambda y: y.view(32, 128).t().reshape(64, 64)),
    "decode layer, batch 1": lambda: layer(1, 128),
    "decode layer, batch 16": lambda: layer(16, 256),
}


def rows() -> Iterator[measure.Row]:
    """A row for each program."""
    for name, make in PROGRAMS.items():
        run = make()
        run()
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            run()
        yield measure.times({"eager": run, "replay": graph.replay}).row(f"replay of {name}", "replay", "eager", 1.0)


if __name__ == "__main__":
    measure.main("replay of a captured graph against the same launches one by one, on the simulated device", rows)
