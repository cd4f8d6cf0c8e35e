"""`moe_graph.plan`: the graph of a module and what it costs, from shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_graph.foundation.product import current_product
from moe_graph.planning import communication, fakes, ge, lowering, rehearsal, roofline, routing, traffic
from moe_graph.planning.errors import PlanError
from moe_graph.planning.rehearsal import Step

GRAPH_MODE, CAPTURED = "max-autotune", "reduce-overhead"


@dataclass(frozen=True)
class Memory:
    """Bytes on the device: exact, but for what kernels and alignment add to the results.

    Attributes:
        parameters: of the module, those that several modules share counted once
        buffers: of the module, without caches
        caches: tensors given or held that the graph writes to, or that are an operator's cache
        inputs: the other tensors of the call
        results: the most that results of nodes take at one time
    """

    parameters: int
    buffers: int
    caches: int
    inputs: int
    results: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.parameters + self.buffers + self.caches + self.inputs + self.results


@dataclass(frozen=True, repr=False)
class Plan:
    """What a graph will cost.

    Attributes:
        graph: the graph that was lowered
        mode: "max-autotune" (GE) or "reduce-overhead" (captured)
        memory: bytes on the device
        at_peak: (node, bytes) of the results that live when most do, the largest first
        steps: what each node does, in the order of the run
        loads: by the distribution's name, what the ranks have to do in the routing with most tokens
        rank, world: which rank of how many
        product: "A2", "A3" or "950", whose figures the estimate is made with
        figures: these figures
    """

    graph: lowering.LoweredGraph
    mode: str
    memory: Memory
    at_peak: tuple[tuple[str, int], ...]
    steps: tuple[Step, ...]
    loads: Mapping[str, routing.Load] = field(default_factory=dict)
    rank: int = 0
    world: int = 1
    product: str = "A2"
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"<Plan of {self.graph.name}: {len(self.steps)} nodes, {self.memory.total} bytes, {self.flops} operations>"
        )

    @property
    def flops(self) -> int:
        """Operations of all products and attention."""
        return sum(step.flops for step in self.steps)

    @property
    def moved(self) -> int:
        """Bytes read and written by all nodes."""
        return sum(step.moved for step in self.steps)

    @property
    def node_types(self) -> Counter[str]:
        """How many nodes there are of each type."""
        return Counter(step.type for step in self.steps)

    @property
    def messages(self) -> tuple[communication.Message, ...]:
        """What this rank communicates, in order."""
        return tuple(message for step in self.steps for message in step.communication)

    @property
    def estimate(self) -> float:
        """Seconds by the roofline: an estimate, and the only figure here that is one."""
        return roofline.total(self.steps, self.figures)


def plan(
    model: Callable,
    *inputs: Any,
    dynamic: bool | None = False,
    config: Any = None,
    mode: str | None = None,
    dump: str | Path | None = None,
    tokens: Iterable[str] = (routing.UNIFORM, routing.SKEWED),
    figures: str | Path | None = None,
) -> Plan:
    """The graph of `model`, called with `inputs`, and its costs. Nothing is allocated, and nothing is run.

    Args:
        model: a module or function. Tensors of it and of `inputs` may have memory, be on "meta" or be fake; shapes and dtypes count.
        inputs: arguments of the call. Sizes that `dynamic` makes symbols are planned as they are here.
        dynamic, config, mode: as `moe_graph.testing.lower` takes them.
        dump: a folder that takes torchair's dumps of every kind.
        tokens: distributions of tokens over experts: "uniform", "skewed", or files (`moe_graph.planning.routing.distribution`).
        figures: a YAML file for the estimate of times, in place of the package's.

    Raises:
        PlanError: if it is not one graph, the product does not serve a call, or the sizes of a node follow from nothing. What Dynamo and
            torchair raise is passed on, with the line of the model in it.
    """
    tokens = list(tokens)
    for name in tokens:
        routing.check(name)
    fake = fakes.fake_mode(model, inputs)
    on_npu, arguments = fakes.on_device(fake, "npu", (model, inputs))
    graphs, _ = lowering.called(on_npu, [arguments], fake, dynamic=dynamic, config=config, mode=mode, dump=dump)
    if len(graphs) != 1:
        raise PlanError(f"the call must be one graph, it became {len(graphs)}")
    (graph,) = graphs
    captured = graph.definition is None
    run = rehearsal.rehearse(graph.module, graph.inputs, fake, graph.source_lines, captured)
    if not captured:
        run = ge.rehearse(graph.definition, graph.ge_inputs, run, graph.source_lines)
    product = current_product().name
    return Plan(
        graph,
        CAPTURED if captured else GRAPH_MODE,
        _memory(on_npu, graph, run),
        tuple(run.at_peak),
        tuple(run.steps),
        _loads(run.routed, tokens),
        *_place(),
        product,
        roofline.figures(product, figures),
    )


def _memory(model: Any, graph: lowering.LoweredGraph, run: rehearsal.Rehearsal) -> Memory:
    parameters = {id(value): value for value in (model.parameters() if isinstance(model, nn.Module) else ())}
    buffers = {id(value): value for value in (model.buffers() if isinstance(model, nn.Module) else ())}
    caches, others = {}, {}
    for position, value in enumerate(graph.inputs):
        if not isinstance(value, Tensor) or value.device.type != "npu" or id(value) in parameters:
            continue
        if position in run.written_inputs | run.cache_inputs:
            caches[id(value)] = value
            buffers.pop(id(value), None)
        elif isinstance(value, nn.Parameter):
            parameters[id(value)] = value
        elif id(value) not in buffers:
            others[id(value)] = value
    sizes = (traffic.total(values.values()) for values in (parameters, buffers, caches, others))
    return Memory(*sizes, run.peak)


def _loads(routed: list[communication.Routed], names: Iterable[str]) -> dict[str, routing.Load]:
    if not routed:
        return {}
    most = max(routed, key=lambda one: one.tokens * one.top_k)
    return {
        name: routing.load(routing.distribution(name, most.ranks, most.experts, most.tokens, most.top_k))
        for name in names
    }


def _place() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
