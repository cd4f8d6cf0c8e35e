"""A graph of GE rehearsed without memory: sizes of every node's results, and what lives when, in the order of the host engine.

Sizes that torchair noted are those of the FX graph's tensors. What its converters put between them (transposes, casts, arithmetic on
shapes) is computed by the engine's kernels, on tensors without memory where there is any, on numbers where the graph computes with sizes.

It is the graph as torchair hands it over. Workspace of the kernels and the alignment of every tensor come on top of it; what GE fuses or
folds (a transpose of a weight) goes; what it places in the same memory beyond reshapes and references is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from moe_graph.engine import graph as ge_graph
from moe_graph.engine.evaluator import compute
from moe_graph.planning import traffic
from moe_graph.planning.errors import PlanError
from moe_graph.planning.rehearsal import Rehearsal, Step

# Results that lie where the first input lies.
VIEWS = frozenset("Reshape Unsqueeze Squeeze ExpandDims Flatten Identity Bitcast".split())
_FX = re.compile(r"(?P<node>.+?)-.*\.OUTPUT\.(?P<output>\d+)")
_PICKING = frozenset("GatherV2 Gather EmbeddingLookup GatherNd".split())

Slot = tuple[int, int]


def rehearse(
    definition: Any, inputs: Sequence[Tensor], of_fx: Rehearsal, source_lines: Mapping[str, str] | None = None
) -> Rehearsal:
    """The steps of a GraphDef, given its run-time inputs and the rehearsal of the FX graph that it was lowered from.

    Raises GraphError for a graph that the engine cannot plan, PlanError that names the node whose sizes follow from nothing.
    """
    return _Ge(ge_graph.plan(definition, source_lines), inputs, of_fx, source_lines or {}).run()


class _Ge:
    def __init__(
        self, plan: ge_graph.Plan, inputs: Sequence[Tensor], of_fx: Rehearsal, lines: Mapping[str, str]
    ) -> None:
        self._plan = plan
        self._fx = of_fx
        self._fx_steps = {step.name: step for step in of_fx.steps}
        self._lines = lines
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[Slot, Tensor] = dict(plan.constants)
        self._owner: dict[Slot, Slot | None] = dict.fromkeys(
            plan.constants
        )  # None: memory that the graph does not allocate
        for position, value in enumerate(inputs):
            slot = (plan.data[position].index, 0)
            self._values[slot] = self._without_memory(value)
            self._owner[slot] = None
        self._size: dict[Slot, int] = {}
        self._held: dict[Slot, int] = {}  # owner -> how many values lie there

    def _without_memory(self, value: Tensor) -> Tensor:
        if value.device.type == "cpu" and not isinstance(value, FakeTensor):
            return value.reshape(()) if value.shape == (1,) else value  # a size: the graph computes with it
        return self._fake(tuple(map(int, value.shape)), value.dtype)

    def _fake(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        with self._mode:
            return torch.empty(tuple(shape), dtype=dtype)

    def run(self) -> Rehearsal:
        fx = self._fx
        result = Rehearsal(written_inputs=fx.written_inputs, cache_inputs=fx.cache_inputs, routed=fx.routed)
        live = 0
        for index in self._plan.order:
            node = self._plan.nodes[index]
            made = self._results(node)
            step = self._step(node, made)
            for output, value in enumerate(made):
                slot = (index, output)
                self._values[slot] = value
                owner = self._owner[slot] = self._lies_in(node, slot)
                if owner == slot:
                    self._size[slot] = _bytes(value, node.outputs[output].type)
                    step.allocated += self._size[slot]
                    self._held[slot] = 0
                if owner is not None:
                    self._held[owner] += 1
            live += step.allocated
            step.live = live
            if live > result.peak:
                result.peak = live
                result.at_peak = [(self._plan.nodes[slot[0]].name, self._size[slot]) for slot in self._held]
            live -= sum(map(self._let_go, self._plan.frees.get(index, ())))
            result.steps.append(step)
        result.at_peak.sort(key=lambda one: -one[1])
        return result

    def _lies_in(self, node: ge_graph.Node, slot: Slot) -> Slot | None:
        """The slot whose memory a result lies in: its own, or that of an input."""
        assigned = node.kernel.assigns if node.kernel is not None else ()
        named = node.outputs[slot[1]].name
        names = [given.name for given in node.inputs]
        if node.type in VIEWS:
            source = 0
        elif named in assigned and named in names:
            source = names.index(named)
        elif slot[1] == 0 and assigned:
            source = names.index(assigned[0])
        else:
            return slot
        at = node.slots[source]
        return slot if at is None else self._owner[at]

    def _let_go(self, slot: Slot) -> int:
        """A value that no later node reads: the bytes that are free now."""
        self._values.pop(slot, None)
        owner = self._owner.get(slot)
        if owner is None:
            return 0
        self._held[owner] -= 1
        if self._held[owner]:
            return 0
        del self._held[owner]
        return self._size[owner]

    def _results(self, node: ge_graph.Node) -> list[Tensor]:
        noted = [self._noted(node, output) for output in range(len(node.outputs))]
        known = [value for value in noted if value is not None]
        fed = [None if slot is None else self._values[slot] for slot in node.slots]
        of_numbers = bool(fed) and not any(isinstance(value, FakeTensor) for value in fed)
        if len(known) == len(noted) and not of_numbers:
            return known
        try:
            return self._computed(node, fed)
        except Exception as error:
            raise PlanError(
                f"{node}: the sizes of its results are not noted in the graph, and do not follow from its inputs "
                f"{[None if value is None else (str(value.dtype), list(value.shape)) for value in fed]}: {error}"
            ) from error

    def _computed(self, node: ge_graph.Node, fed: Sequence[Tensor | None]) -> list[Tensor]:
        return [
            value if isinstance(value, FakeTensor) or _is_number(value) else self._fake(value.shape, value.dtype)
            for value in compute(node, fed)
        ]

    def _noted(self, node: ge_graph.Node, output: int) -> Tensor | None:
        """What torchair says of this result: the FX tensor that it is."""
        described = node.outputs[output]
        match = _FX.match(described.fx_name)
        found = self._fx.results.get(match["node"], ()) if match else ()
        if match and int(match["output"]) < len(found) and found[int(match["output"])] is not None:
            shape, dtype = found[int(match["output"])]
            return self._fake(shape, dtype)
        return None

    def _step(self, node: ge_graph.Node, made: Sequence[Tensor]) -> Step:
        fx = node.source.partition("-")[0]
        step = Step(node.name, node.type, self._lines.get(fx, ""), fx)
        whole = self._fx_steps.get(fx)
        if whole is not None and any(described.fx_name for described in node.outputs):
            # Once: what the converter put before it is no product and no collective.
            del self._fx_steps[fx]
            step.flops, step.flops_are_bound, step.dtype = whole.flops, whole.flops_are_bound, whole.dtype
            step.communication = whole.communication
        if node.type in VIEWS:
            return step
        assigned = node.kernel.assigns if node.kernel is not None else ()
        fed = {
            slot: self._values[slot]
            for slot, given in zip(node.slots, node.inputs)
            if slot is not None and given.name not in assigned
        }
        types = {
            slot: self._plan.nodes[slot[0]].outputs[slot[1]].type for slot in fed if slot not in self._plan.constants
        }
        step.written = sum(
            _bytes(value, described.type)
            for output, (value, described) in enumerate(zip(made, node.outputs))
            if self._lies_in(node, (node.index, output)) == (node.index, output)
        )
        if node.type in _PICKING:
            rest = [slot for slot in fed if slot != node.slots[0]]
            step.read = step.written + sum(_bytes(fed[slot], types.get(slot)) for slot in rest)
        else:
            step.read = sum(_bytes(value, types.get(slot)) for slot, value in fed.items())
        return step


def _is_number(value: Tensor) -> bool:
    """Small enough to be a size or an axis, which graphs compute with."""
    return value.numel() <= 64


def _bytes(value: Tensor, described: Any) -> int:
    if described is not None and described.packed:
        return value.numel() * described.bits // 8
    return traffic.size(value)
