"""The shapes that a graph describes, against those that its kernels give on fake tensors: nothing is computed."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from moe_graph.checking.finding import ERROR, NOTE, Finding
from moe_graph.dumps.model import Descriptor, Graph
from moe_graph.dumps.reading_definition import from_definition
from moe_graph.engine import graph as planning
from moe_graph.engine.errors import GraphError
from moe_graph.engine.evaluator import compute
from moe_graph.engine.graph import Node

# A result's shape depends on values, which a fake tensor has none of.
_BY_VALUE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
    UnsupportedOperatorException,
    NotImplementedError,
)
Slot = tuple[int, int]


def check_shapes(definition: Any) -> list[Finding]:
    """What the kernels of the host engine give that is not what the graph describes.

    A node is left out where a size that it reads is not known before the run, where its result's shape depends on values, and, with a
    note, where the engine has no kernel that takes it. What follows from such a node is left out, too: the graph describes its result,
    but torchair describes a view that it puts off there as well, so the dimensions may come in another order. A shape is compared
    exactly at the graph's outputs, and by its number of elements within the graph, where torchair puts views off.

    Args:
        definition: a GraphDef.
    """
    described, noted = from_definition(definition), from_definition(definition, as_noted=True)
    found: list[Finding] = []

    def left_out(node: Node, error: GraphError) -> None:
        reason = str(error).splitlines()[0].removeprefix(f"{node}: ")
        found.append(Finding(NOTE, str(node), f"the shapes of its results are not checked: {reason}"))

    try:
        plan = planning.plan(definition, unbound=left_out)
    except GraphError as error:
        return [Finding(ERROR, described.name, str(error))]
    # Kernels run outside of the mode, where constants keep their values: sizes and axes are read from them.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _quiet(), torch.no_grad():
        values: dict[Slot, Tensor] = {slot: value.clone() for slot, value in plan.constants.items()}
        for node in plan.data.values():
            _described_value(values, described, node, mode)
        uncertain: set[Slot] = set()
        for index in plan.order:
            node = plan.nodes[index]
            certain = uncertain.isdisjoint(node.slots)
            results = _run(node, values, found if certain else [])
            for output, result in enumerate(results or ()):
                values[index, output] = result
                found += _compare(node, output, result, noted) if certain else []
            if results is None:
                _described_value(values, described, node, mode)
            if results is None or not certain:
                uncertain.update((index, output) for output in range(len(node.outputs)))
        for position, (slot, descriptor) in enumerate(zip(plan.results, plan.outputs)):
            given = values.get(slot)
            if given is None or slot in uncertain or not descriptor.is_fx or any(size < 0 for size in descriptor.shape):
                continue
            if tuple(given.shape) != descriptor.shape:
                text = f"output {position} of the graph is described as {list(descriptor.shape)}; it is {list(given.shape)}"
                found.append(Finding(ERROR, str(plan.nodes[slot[0]]), text))
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch writes what its own implementations refuse into its log as well."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _run(node: Node, values: dict[Slot, Tensor], found: list[Finding]) -> list[Tensor] | None:
    """What the kernel gives on fake tensors; None if it cannot be told."""
    if node.kernel is None:
        return None
    fed = [None if slot is None else values.get(slot) for slot in node.slots]
    if any(slot is not None and value is None for slot, value in zip(node.slots, fed)):
        return None
    try:
        return compute(node, fed)
    except _BY_VALUE:
        return None
    except Exception as error:
        if _asks_for_values(error):
            return None
        found.append(Finding(ERROR, str(node), f"its kernel refuses what it reads: {error}"))
        return None


def _asks_for_values(error: Exception) -> bool:
    text = str(error)
    return any(
        words in text for words in ("fake tensor", "FakeTensor", "meta tensor", "Meta tensors", ".numpy()", "no data")
    )


def _described_value(values: dict[Slot, Tensor], described: Graph, node: Node, mode: FakeTensorMode) -> None:
    """Go on with what the graph describes of a node's outputs, where that is a whole shape; one without sizes may be of a frozen weight."""
    for output, (descriptor, own) in enumerate(zip(described.by_name[node.name].outputs, node.outputs)):
        if descriptor.shape and not descriptor.is_dynamic and own.type is not None:
            with mode:
                values[node.index, output] = torch.empty(descriptor.shape, dtype=own.type.torch)


def _compare(node: Node, output: int, result: Tensor, noted: Graph) -> list[Finding]:
    outputs = noted.by_name[node.name].outputs
    descriptor = outputs[output] if output < len(outputs) else Descriptor("", None)
    if descriptor.shape is None or descriptor.is_dynamic or not node.outputs[output].fx_name:
        return []
    if math.prod(descriptor.shape) == result.numel():
        return []
    text = f"output {output} is described as {list(descriptor.shape)}; its kernel gives {list(result.shape)}"
    return [Finding(ERROR, str(node), text)]
