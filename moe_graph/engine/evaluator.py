"""Runs a planned graph on CPU tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_graph.engine import graph
from moe_graph.engine.errors import GraphError, KernelError
from moe_graph.engine.graph import Node, Plan


class Program:
    """A graph ready to run. It holds no state between runs, so threads may run it at the same time."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def name(self) -> str:
        """The graph's name."""
        return self._plan.name

    @property
    def node_types(self) -> list[str]:
        """GE types of the graph's nodes, in the graph's order."""
        return [node.type for node in self._plan.nodes]

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run on CPU tensors, one for each Data node by its index; return the outputs in NetOutput's order.

        Raises GraphError if the number or a dtype of the inputs does not fit, KernelError if a kernel fails.
        An output may share memory with an input where the graph passes one through.
        """
        plan = self._plan
        if len(inputs) != len(plan.data):
            raise GraphError(f"graph {plan.name!r} takes {len(plan.data)} inputs, got {len(inputs)}")
        values = dict(plan.constants)
        for position, value in enumerate(inputs):
            node = plan.data[position]
            _check_input(node, position, value)
            values[node.index, 0] = value.detach()
        with torch.no_grad():
            for index in plan.order:
                node = plan.nodes[index]
                for output, result in enumerate(_execute(node, values)):
                    values[index, output] = result
                for slot in plan.frees.get(index, ()):
                    values.pop(slot, None)
        return [values[slot] for slot in plan.results]


def load_model(serialized: bytes, source_lines: Mapping[str, str] | None = None) -> Program:
    """Parse and plan a serialized ModelDef, as torchair hands it to GE. Raises GraphError.

    `source_lines` tells for an FX node's name the line of the user's program it came from; errors quote it.
    """
    return Program(graph.plan(graph.parse(serialized), source_lines))


def _check_input(node: Node, position: int, value: Tensor) -> None:
    described = node.outputs[0]
    if described.type is not None and value.dtype != described.type.torch:
        raise GraphError(f"input {position} of {node} must be {described.type.name}, got {value.dtype}")
    fixed = described.shape and -2 not in described.shape
    if fixed and (
        len(described.shape) != value.dim()
        or any(size not in (-1, got) for size, got in zip(described.shape, value.shape))
    ):
        raise GraphError(f"input {position} of {node} must have shape {list(described.shape)}, got {list(value.shape)}")


def _execute(node: Node, values: dict[tuple[int, int], Tensor]) -> list[Tensor]:
    fed = [None if slot is None else values[slot] for slot in node.slots]
    arguments = [
        None if position is None else [fed[p] for p in position] if isinstance(position, list) else fed[position]
        for position in node.bound
    ]
    try:
        results = _flat(node.kernel.function(*arguments, **node.attributes))
    except Exception as error:
        raise KernelError(f"{node} failed on {_describe(node, fed)}: {error}") from error
    if len(results) != len(node.outputs):
        raise KernelError(f"{node}: the kernel returned {len(results)} outputs, the graph has {len(node.outputs)}")
    return results


def _flat(results: object) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [tensor for result in results for tensor in ([result] if isinstance(result, Tensor) else result)]


def _describe(node: Node, fed: list[Tensor | None]) -> str:
    return ", ".join(
        f"{desc.name}: {'absent' if value is None else f'{value.dtype} {list(value.shape)}'}"
        for desc, value in zip(node.inputs, fed)
    )
