"""Runs the models named, and their edited graphs, on the simulated device; prints as JSON what its allocator and the host engine counted.

    {"captured": {name and edit: bytes}, "ge": {name: bytes}}

The planner is not imported here.
"""

from __future__ import annotations

import copy
import json
import sys

import moe_graph.simulator  # noqa: F401  isort: skip
import torch
import torchair
from torchair._acl_concrete_graph.fx2acl_converter import AclConcreteGraph
from torchair.npu_fx_compiler import _CompiledFxGraph

from moe_graph.engine import evaluator
from planning import models

VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "ExpandDims", "Flatten", "Identity", "Bitcast")


def on_device(name, mode):
    torch._dynamo.reset()
    model, arguments = models.inputs()[name]
    config = torchair.CompilerConfig()
    config.mode = mode
    backend = torchair.get_npu_backend(compiler_config=config)
    compiled = torch.compile(model.npu(), backend=backend, dynamic=False, fullgraph=True)
    return compiled, [argument.npu() for argument in arguments]


def captured(name):
    """What the allocator was asked for at most, beyond the inputs, while the graph ran: the graph as it is, and edited."""
    seen = []
    original = AclConcreteGraph.optimize_graph_without_runtime

    def optimize(self, *args, **kwargs):
        original(self, *args, **kwargs)
        seen.append(self)

    def call(self, *args):
        seen.append(args)
        return self.fx_graph(*args)

    called = AclConcreteGraph.__call__
    AclConcreteGraph.optimize_graph_without_runtime, AclConcreteGraph.__call__ = optimize, call
    compiled, arguments = on_device(name, "reduce-overhead")
    code = _CompiledFxGraph.get_code
    _CompiledFxGraph.get_code = lambda self, *args, **kwargs: self.runner
    with torch.no_grad():
        compiled(*arguments)
    _CompiledFxGraph.get_code = code
    AclConcreteGraph.optimize_graph_without_runtime, AclConcreteGraph.__call__ = original, called
    concrete, inputs = seen
    found = {}
    for edit, change in models.EDITS.items():
        module = copy.deepcopy(concrete.fx_graph)
        if change is not None:
            change(module)
        torch.npu.synchronize()
        torch.npu.reset_peak_memory_stats()
        before = torch.npu.memory_stats()["requested_bytes.all.current"]
        with torch.no_grad():
            module(*inputs)
        found[f"{name} {edit}".strip()] = torch.npu.memory_stats()["requested_bytes.all.peak"] - before
    return found


def in_engine(name):
    """The most bytes of results that nobody has read for the last time, while the host engine runs the graph. Views take none."""
    peaks = []

    def watch(plan, given):
        readers = {}
        for index in plan.order:
            for slot in plan.nodes[index].slots:
                readers.setdefault(slot, set()).add(index)
        held, where = {}, dict.fromkeys(given)
        last = {slot: max(plan.order.index(index) for index in by) for slot, by in readers.items()}
        kept = set(plan.results)

        def after(node, outputs):
            now = plan.order.index(node.index)
            for output, value in enumerate(outputs):
                slot = (node.index, output)
                assigned = [slot for slot, one in zip(node.slots, node.inputs) if one.name in node.kernel.assigns]
                source = node.slots[0] if node.type in VIEWS else assigned[0] if assigned and not output else slot
                where[slot] = slot if source == slot else where[source]
                if where[slot] == slot:
                    held[slot] = value.numel() * value.element_size()
            peaks.append(sum(held.values()))
            alive = {where[slot] for slot in where if slot in kept or last.get(slot, -1) > now}
            for slot in set(held) - alive:
                del held[slot]

        return after

    compiled, arguments = on_device(name, "max-autotune")
    with torch.no_grad(), evaluator.observe(watch):
        compiled(*arguments)
    return max(peaks, default=0)


if __name__ == "__main__":
    found = {"captured": {}, "ge": {}}
    for name in sys.argv[1:]:
        found["captured"].update(captured(name))
        found["ge"][name] = in_engine(name)
    assert "moe_graph.planning" not in sys.modules
    print(json.dumps(found))
